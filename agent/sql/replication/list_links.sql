-- Subscriptions of this database that Steep made, as a mesh needs to know them.
-- No parameters.  PostgreSQL 16+: before there is no origin filter.
select s.oid                                                   as oid,
       s.subname::text                                         as name,
       s.subenabled                                            as is_enabled,
       coalesce(s.subslotname::text, '')                       as slot,
       s.suborigin = 'none'                                    as is_mutual,
       array(select n.nspname::text
               from pg_catalog.pg_subscription_rel r
               join pg_catalog.pg_class            c on c.oid = r.srrelid
               join pg_catalog.pg_namespace        n on n.oid = c.relnamespace
              where r.srsubid = s.oid
              order by c.oid)                                  as schema_names,
       array(select c.relname::text
               from pg_catalog.pg_subscription_rel r
               join pg_catalog.pg_class            c on c.oid = r.srrelid
              where r.srsubid = s.oid
              order by c.oid)                                  as table_names
  from pg_catalog.pg_subscription s
 where s.subdbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
   and pg_catalog.starts_with(s.subname::text, 'steep_from_')
 order by s.subname;
