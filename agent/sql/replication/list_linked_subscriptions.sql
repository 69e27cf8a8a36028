-- Our subscriptions that reach their publisher over a unix socket. The connection string holds the link's secret.
-- No parameters.  PostgreSQL 15+.
select s.subname::text                         as name,
       s.subslotname::text                     as slot,
       s.subconninfo                           as conninfo
  from pg_catalog.pg_subscription s
 where s.subdbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
   and pg_catalog.starts_with(s.subname::text, 'steep_from_')
   and s.subslotname is not null
   and pg_catalog.strpos(s.subconninfo, 'password=') > 0
 order by s.subname;
