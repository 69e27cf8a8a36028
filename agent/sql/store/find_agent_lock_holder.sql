-- The session that is this database's agent.  PostgreSQL 15+.
-- $1, $2 the lock's two keys. What another role's session is stays empty without pg_read_all_stats.
select l.pid                                                                 as pid,
       coalesce(a.application_name, '')                                      as application_name,
       coalesce(pg_catalog.host(a.client_addr), 'this machine')              as client,
       coalesce(a.usename::text, '')                                         as user_name,
       a.backend_start                                                       as backend_start
  from pg_catalog.pg_locks l
  join pg_catalog.pg_database d on d.oid = l.database
                               and d.datname = pg_catalog.current_database()
  left join pg_catalog.pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory'
   and l.classid = $1::integer::oid
   and l.objid = $2::integer::oid
   and l.objsubid = 2
   and l.granted;
