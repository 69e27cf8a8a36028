-- The steps of an operation, in order.  PostgreSQL 15+.
-- $1 operation.
select s.name         as name,
       s.status       as status,
       s.started_at   as started_at,
       s.ended_at     as ended_at
  from steep_repl.operation_steps s
 where s.op_id = $1::uuid
 order by s.ordinal;
