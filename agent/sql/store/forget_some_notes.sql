-- Forgets part of what an operation has written down.  PostgreSQL 15+.
-- $1 operation; $2 what the names begin with.
delete from steep_repl.operation_notes as n
 using unnest($2::text[]) as b (beginning)
 where n.op_id = $1::uuid
   and pg_catalog.starts_with(n.name, b.beginning);
