-- What happened in an operation after a cursor, oldest first.  PostgreSQL 15+.
-- $1 operation; $2 cursor, 0 for all; $3 how many at most.
select e.cursor   as cursor,
       e.at       as at,
       e.event    as event,
       e.body     as body
  from steep_repl.operation_events e
 where e.op_id = $1::uuid
   and e.cursor > $2::bigint
 order by e.cursor
 limit $3::bigint;
