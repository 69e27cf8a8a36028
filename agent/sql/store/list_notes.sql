-- What an operation has written down to go on with.  PostgreSQL 15+.
-- $1 operation.
select n.name   as name,
       n.body   as body
  from steep_repl.operation_notes n
 where n.op_id = $1::uuid;
