-- One operation.  PostgreSQL 15+.
-- $1 its id.
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
 where op_id = $1::uuid;
