-- Foreign keys that begin or end at the given tables, with what PostgreSQL itself compares; those over periods are left out.
-- $1 the tables' oids.  PostgreSQL 15+.
select k.conname::text                                                                        as name,
       n.nspname::text                                                                        as schema_name,
       c.relname::text                                                                        as table_name,
       c.relkind = 'p'                                                                        as is_partitioned,
       fn.nspname::text                                                                       as referenced_schema,
       fc.relname::text                                                                       as referenced_name,
       fc.relkind = 'p'                                                                       as is_referenced_partitioned,
       (select pg_catalog.string_agg(pg_catalog.format('c.%I is not null', a.attname), ' and ' order by u.at)
          from pg_catalog.unnest(k.conkey) with ordinality u (attnum, at)
          join pg_catalog.pg_attribute a on a.attrelid = k.conrelid
                                        and a.attnum = u.attnum)                              as is_set,
       (select pg_catalog.string_agg(
                 pg_catalog.format('r.%I operator(%I.%s) c.%I', fa.attname, o.nspname, o.oprname, a.attname),
                 ' and ' order by u.at)
          from unnest(k.conkey, k.confkey, k.conpfeqop) with ordinality u (attnum, referenced, operator, at)
          join pg_catalog.pg_attribute a  on a.attrelid = k.conrelid
                                         and a.attnum = u.attnum
          join pg_catalog.pg_attribute fa on fa.attrelid = k.confrelid
                                         and fa.attnum = u.referenced
          join (select op.oid as oid, op.oprname as oprname, s.nspname as nspname
                  from pg_catalog.pg_operator  op
                  join pg_catalog.pg_namespace s on s.oid = op.oprnamespace) o on o.oid = u.operator) as is_met
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_class      c  on c.oid = k.conrelid
  join pg_catalog.pg_namespace  n  on n.oid = c.relnamespace
  join pg_catalog.pg_class      fc on fc.oid = k.confrelid
  join pg_catalog.pg_namespace  fn on fn.oid = fc.relnamespace
 where k.contype = 'f'
   and k.convalidated
   and k.conparentid = 0
   and coalesce(pg_catalog.to_jsonb(k) ->> 'conperiod', 'false') = 'false'
   and (k.conrelid = any ($1::oid[]) or k.confrelid = any ($1::oid[]))
 order by n.nspname, c.relname, k.conname;
