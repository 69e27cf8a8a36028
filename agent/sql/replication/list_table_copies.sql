-- The tables that a subscription has copied by itself, copies, or will copy.
-- $1 the subscription.  PostgreSQL 15+.
select n.nspname::text                                          as schema_name,
       c.relname::text                                          as table_name,
       r.srsubstate::text                                       as state,
       p.tuples_processed                                       as rows_so_far,
       p.bytes_processed                                        as bytes_so_far,
       pg_catalog.pg_stat_get_tuples_inserted(r.srrelid)        as rows_inserted
  from pg_catalog.pg_subscription s
  join pg_catalog.pg_subscription_rel r  on r.srsubid = s.oid
  join pg_catalog.pg_class c             on c.oid = r.srrelid
  join pg_catalog.pg_namespace n         on n.oid = c.relnamespace
  left join pg_catalog.pg_stat_progress_copy p
    on p.datid = s.subdbid
   and p.relid = r.srrelid
   and p.command = 'COPY FROM'
   and p.type = 'CALLBACK'
 where s.subname = $1::text
 order by c.oid;
