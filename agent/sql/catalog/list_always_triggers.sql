-- Triggers that fire in sessions that load or apply rows too, by the table they were made on.
-- $1 the tables' oids.  PostgreSQL 15+.
select t.tgname::text                        as name,
       n.nspname::text                       as schema_name,
       c.relname::text                       as table_name
  from pg_catalog.pg_trigger   t
  join pg_catalog.pg_class     c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where t.tgrelid = any ($1::oid[])
   and t.tgenabled in ('A', 'R')
   and not t.tgisinternal
   and t.tgparentid = 0
 order by n.nspname, c.relname, t.tgname;
