-- How far the last initialization of a node is or came.  PostgreSQL 15+.
-- $1 node id. Nothing where none was begun.
select p.op_id                   as op_id,
       p.phase                   as phase,
       p.overall_percent         as overall_percent,
       p.tables_total            as tables_total,
       p.tables_completed        as tables_completed,
       p.current_table           as current_table,
       p.current_table_percent   as current_table_percent,
       p.rows_copied             as rows_copied,
       p.bytes_copied            as bytes_copied,
       p.throughput_rows_sec     as throughput_rows_sec,
       p.parallel_workers        as parallel_workers,
       p.eta_seconds             as eta_seconds,
       p.error_message           as error_message,
       p.started_at              as started_at,
       p.updated_at              as updated_at
  from steep_repl.init_progress p
 where p.node_id = $1::text
   and p.op_id is not null;
