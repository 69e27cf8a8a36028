-- Sessions that wait for a lock which one of the given processes holds or stands in line before them for.
-- $1 the processes.  PostgreSQL 15+.
select a.pid                                                                     as pid,
       pg_catalog.left(coalesce(a.query, ''), 200)                               as query,
       coalesce(a.usename::text, '')                                             as user_name,
       coalesce(a.application_name, '')                                          as application,
       coalesce(n.nspname::text, '')                                             as schema_name,
       coalesce(c.relname::text, '')                                             as table_name,
       coalesce(l.mode, '')                                                      as mode,
       coalesce(extract(epoch from pg_catalog.clock_timestamp() - l.waitstart),
                0)::float8                                                       as waited_seconds
  from pg_catalog.pg_stat_activity  a
  left join pg_catalog.pg_locks     l on l.pid = a.pid and not l.granted
  left join pg_catalog.pg_class     c on l.locktype = 'relation' and c.oid = l.relation
                                     and l.database = (select d.oid
                                                         from pg_catalog.pg_database d
                                                        where d.datname = pg_catalog.current_database())
  left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where a.wait_event_type = 'Lock'
   and pg_catalog.pg_blocking_pids(a.pid) && $1::integer[]
 order by l.waitstart, a.pid;
