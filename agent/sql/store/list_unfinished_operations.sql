-- Operations that have not ended, oldest first.  PostgreSQL 15+.
-- No parameters.
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
 where status in ('running', 'cancelling', 'interrupted')
 order by started_at;
