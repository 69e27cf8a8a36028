-- Subscriptions of all databases of the server.  PostgreSQL 15+.
-- No parameters.
select d.datname::text                                        as database,
       s.subname::text                                        as name,
       s.subenabled                                           as is_enabled,
       d.datname = pg_catalog.current_database()              as is_here
  from pg_catalog.pg_subscription s
  join pg_catalog.pg_database     d on d.oid = s.subdbid
 order by d.datname, s.subname;
