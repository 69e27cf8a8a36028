-- Operations, newest first.  PostgreSQL 15+.
-- $1 how many at most.
select op_id,
       kind,
       target,
       source,
       method,
       request,
       status,
       step,
       started_by,
       started_at,
       ended_at,
       failure
  from steep_repl.operations
 order by started_at desc
 limit $1::bigint;
