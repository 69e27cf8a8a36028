-- Makes a subscription skip tables from now on, whatever comes. None of its workers may be alive.
-- $1 its name; $2 schemas, $3 tables, pairwise.  PostgreSQL 15+.
update pg_catalog.pg_subscription_rel r
   set srsubstate = 's',
       srsublsn   = 'FFFFFFFF/FFFFFFFF'
 where r.srsubid = (select s.oid
                      from pg_catalog.pg_subscription s
                      join pg_catalog.pg_database     d on d.oid = s.subdbid
                     where s.subname = $1::text
                       and d.datname = pg_catalog.current_database())
   and r.srrelid in (select c.oid
                       from unnest($2::text[], $3::text[]) w (schema_name, table_name)
                       join pg_catalog.pg_namespace n on n.nspname = w.schema_name
                       join pg_catalog.pg_class     c on c.relnamespace = n.oid
                                                     and c.relname = w.table_name);
