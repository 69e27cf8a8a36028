-- Forgets which parts of some tables an operation has copied.  PostgreSQL 15+.
-- $1 operation; $2 schemas and $3 names of the tables, in the same order.
delete from steep_repl.copied_parts as p
 where p.op_id = $1::uuid
   and (p.table_schema, p.table_name) in (select * from unnest($2::text[], $3::text[]));
