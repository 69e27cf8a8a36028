-- Stores what happened in an operation.  PostgreSQL 15+.
-- $1 operation; $2 event; $3 body; $4 whether a crash of the server may take it away.
with haste as materialized (
  select pg_catalog.set_config('synchronous_commit',
                               case when $4::boolean then 'off' else pg_catalog.current_setting('synchronous_commit') end,
                               true)
)
insert into steep_repl.operation_events (op_id, event, body)
select $1::uuid, $2::text, $3::jsonb from haste
returning cursor;
