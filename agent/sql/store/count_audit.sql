-- What the audit log has gained.  PostgreSQL 15+.
-- $1 id of the last row counted before, 0 for none.
select coalesce(max(a.id), $1::bigint)                               as last_id,
       count(*) filter (where a.action = 'rpc.denied')               as denied,
       count(*) filter (where a.action <> 'rpc.denied')              as done,
       max(a.at) filter (where a.action = 'init.state_change')       as moved_at
  from steep_repl.audit_log a
 where a.id > $1::bigint;
