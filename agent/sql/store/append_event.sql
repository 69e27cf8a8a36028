-- Stores what happened in an operation.  PostgreSQL 15+.
-- $1 operation; $2 event; $3 body.
insert into steep_repl.operation_events (op_id, event, body)
values ($1::uuid, $2::text, $3::jsonb)
returning cursor;
