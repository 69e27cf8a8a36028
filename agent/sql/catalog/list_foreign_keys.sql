-- Foreign keys that begin or end at the given tables; the copies a partition inherits are left out.
-- $1 the tables' oids.  PostgreSQL 15+.
select k.conname::text        as name,
       k.conrelid             as table_oid,
       n.nspname::text        as schema_name,
       c.relname::text        as table_name,
       k.confrelid            as referenced_oid,
       fn.nspname::text       as referenced_schema,
       fc.relname::text       as referenced_name
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_class      c  on c.oid = k.conrelid
  join pg_catalog.pg_namespace  n  on n.oid = c.relnamespace
  join pg_catalog.pg_class      fc on fc.oid = k.confrelid
  join pg_catalog.pg_namespace  fn on fn.oid = fc.relnamespace
 where k.contype = 'f'
   and k.conparentid = 0
   and (k.conrelid = any ($1::oid[]) or k.confrelid = any ($1::oid[]))
 order by n.nspname, c.relname, k.conname;
