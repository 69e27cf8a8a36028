-- Forgets which parts an operation has copied.  PostgreSQL 15+.
-- $1 operation.
delete from steep_repl.copied_parts as p
 where p.op_id = $1::uuid;
