-- Tables that replicate to or from this database by Steep's publications and subscriptions.  PostgreSQL 15+.
select n.nspname::text                         as schema_name,
       c.relname::text                         as table_name
  from pg_catalog.pg_class                     as c
  join pg_catalog.pg_namespace                 as n on n.oid = c.relnamespace
 where c.oid in (select r.prrelid
                   from pg_catalog.pg_publication_rel as r
                   join pg_catalog.pg_publication     as p on p.oid = r.prpubid
                  where p.pubname like 'steep%')
    or c.oid in (select r.srrelid
                   from pg_catalog.pg_subscription_rel as r
                   join pg_catalog.pg_subscription     as s on s.oid = r.srsubid
                  where s.subname like 'steep\_from\_%'
                    and s.subdbid = (select d.oid
                                       from pg_catalog.pg_database as d
                                      where d.datname = pg_catalog.current_database()))
 order by schema_name, table_name;
