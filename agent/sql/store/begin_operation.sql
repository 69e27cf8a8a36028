-- Begins an operation, unless its id was used before or its target is busy: then returns nothing.  PostgreSQL 15+.
-- $1 operation; $2 kind; $3 target; $4 source; $5 method; $6 request; $7 who asked.
insert into steep_repl.operations (op_id, kind, target, source, method, request, started_by)
values ($1::uuid, $2::text, $3::text, $4::text, $5::text, $6::jsonb, $7::text)
    on conflict do nothing
returning op_id, kind, target, source, method, request, status, step, started_by, started_at, ended_at, failure;
