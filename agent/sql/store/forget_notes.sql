-- Forgets what an operation has written down to go on with.  PostgreSQL 15+.
-- $1 operation.
delete from steep_repl.operation_notes as n
 where n.op_id = $1::uuid;
