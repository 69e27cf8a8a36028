-- The operation that keeps a node busy.  PostgreSQL 15+.
-- $1 the node.
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
 where target = $1::text
   and status in ('running', 'cancelling', 'interrupted');
