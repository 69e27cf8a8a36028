-- Every table of the users' own, light: enough to decide which ones an operation concerns. Tables that belong to an
-- extension are only listed where the extension keeps the user's data in them.
-- No parameters.  PostgreSQL 15+.
select c.oid                                                                    as oid,
       n.nspname::text                                                          as schema_name,
       c.relname::text                                                          as table_name,
       case when c.relispartition then pg_catalog.pg_partition_root(c.oid)::oid end as root_oid,
       e.oid is not null                                                        as is_extension_config
  from pg_catalog.pg_class          c
  join pg_catalog.pg_namespace      n on n.oid = c.relnamespace
  left join pg_catalog.pg_depend    m on m.classid = 'pg_catalog.pg_class'::regclass
                                     and m.objid = c.oid
                                     and m.objsubid = 0
                                     and m.deptype = 'e'
  left join pg_catalog.pg_extension e on e.oid = m.refobjid
                                     and c.oid = any (e.extconfig)
 where c.relkind in ('r', 'p', 'f')
   and c.relpersistence <> 't'
   and n.nspname not in ('pg_catalog', 'information_schema', 'steep_repl', 'steep_mark')
   and n.nspname !~ '^pg_(toast|temp)'
   and (m.objid is null or e.oid is not null)
 order by n.nspname, c.relname;
