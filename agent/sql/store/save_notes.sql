-- Writes down what an operation must know to go on; what was written under a name before is replaced.  PostgreSQL 15+.
-- $1 operation; $2 names; $3 what each of them says.
insert into steep_repl.operation_notes (op_id, name, body)
select $1::uuid, n.name, $3::bytea
  from pg_catalog.unnest($2::text[]) as n (name)
    on conflict (op_id, name)
    do update set body = excluded.body, written_at = excluded.written_at;
