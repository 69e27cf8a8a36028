-- Transactions that have written and are still open, anywhere on the server: a new slot waits for them.
-- $1 only those open for at least this many seconds; $2 not these processes.  PostgreSQL 15+.
select a.pid                                                                     as pid,
       extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::float8   as age_seconds,
       coalesce(a.state, '')                                                     as state,
       coalesce(a.usename::text, '')                                             as user_name,
       coalesce(a.application_name, '')                                          as application_name,
       coalesce(a.datname::text, '')                                             as database,
       pg_catalog.left(coalesce(a.query, ''), 200)                               as query
  from pg_catalog.pg_stat_activity a
 where a.backend_xid is not null
   and a.pid <> pg_catalog.pg_backend_pid()
   and a.pid <> all ($2::integer[])
   and a.xact_start <= pg_catalog.clock_timestamp() - $1::float8 * interval '1 second'
 order by a.xact_start;
