-- The tables Steep's subscriptions carry, how far each is, and whether it is held: skipped whatever comes.
-- No parameters.  PostgreSQL 15+.
select s.subname::text                                          as subscription,
       n.nspname::text                                          as schema_name,
       c.relname::text                                          as table_name,
       r.srsubstate in ('r', 's')                               as is_past_copy,
       coalesce(r.srsubstate = 's'
                and r.srsublsn = 'FFFFFFFF/FFFFFFFF', false)    as is_held
  from pg_catalog.pg_subscription_rel r
  join pg_catalog.pg_subscription     s on s.oid = r.srsubid
  join pg_catalog.pg_database         d on d.oid = s.subdbid
  join pg_catalog.pg_class            c on c.oid = r.srrelid
  join pg_catalog.pg_namespace        n on n.oid = c.relnamespace
 where d.datname = pg_catalog.current_database()
   and pg_catalog.starts_with(s.subname::text, 'steep_from_')
 order by s.subname, n.nspname, c.relname;
