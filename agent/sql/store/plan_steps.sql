-- Writes down the steps an operation will take; those already there stay as they are.  PostgreSQL 15+.
-- $1 operation; $2 names in order.
insert into steep_repl.operation_steps (op_id, ordinal, name)
select $1::uuid, s.ordinal, s.name
  from pg_catalog.unnest($2::text[]) with ordinality as s (name, ordinal)
    on conflict do nothing;
