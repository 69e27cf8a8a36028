-- Stores how far the initialization of a node is.  PostgreSQL 15+.
-- $1 node id; $2 operation; $3 phase; $4 overall percent; $5 tables in all; $6 tables done; $7 current table;
-- $8 its percent; $9 rows; $10 bytes; $11 rows a second; $12 workers; $13 ETA in seconds; $14 error message.
insert into steep_repl.init_progress as p (
    node_id, op_id, phase, overall_percent, tables_total, tables_completed, current_table,
    current_table_percent, rows_copied, bytes_copied, throughput_rows_sec, parallel_workers,
    eta_seconds, error_message, started_at)
values (
    $1::text, $2::uuid, $3::text, $4::real, $5::integer, $6::integer, $7::text,
    $8::real, $9::bigint, $10::bigint, $11::real, $12::integer,
    $13::integer, $14::text,
    coalesce((select o.started_at from steep_repl.operations o where o.op_id = $2::uuid), pg_catalog.now()))
    on conflict (node_id) do update
   set op_id                 = excluded.op_id,
       phase                 = excluded.phase,
       overall_percent       = excluded.overall_percent,
       tables_total          = excluded.tables_total,
       tables_completed      = excluded.tables_completed,
       current_table         = excluded.current_table,
       current_table_percent = excluded.current_table_percent,
       rows_copied           = excluded.rows_copied,
       bytes_copied          = excluded.bytes_copied,
       throughput_rows_sec   = excluded.throughput_rows_sec,
       parallel_workers      = excluded.parallel_workers,
       eta_seconds           = excluded.eta_seconds,
       error_message         = excluded.error_message,
       started_at            = excluded.started_at,
       updated_at            = pg_catalog.now();
