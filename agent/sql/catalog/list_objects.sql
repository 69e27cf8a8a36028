-- Every object of the users' own that a restore could have made and that is not part of another one, with the
-- transaction that made it. A table's row changes with its indexes and triggers; the row of its type does not.
-- No parameters.  PostgreSQL 15+.
with objects (class_id, object_id, namespace_id, made_by) as (
       select n.tableoid, n.oid, n.oid, n.xmin
         from pg_catalog.pg_namespace n
        where n.nspname !~ '^pg_(toast|temp)'
       union all
       select c.tableoid, c.oid, c.relnamespace, coalesce(t.xmin, c.xmin)
         from pg_catalog.pg_class     c
         left join pg_catalog.pg_type t on t.oid = c.reltype
        where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
          and c.relpersistence <> 't'
       union all
       select t.tableoid, t.oid, t.typnamespace, t.xmin from pg_catalog.pg_type t
       union all
       select p.tableoid, p.oid, p.pronamespace, p.xmin from pg_catalog.pg_proc p
       union all
       select o.tableoid, o.oid, o.oprnamespace, o.xmin from pg_catalog.pg_operator o
       union all
       select o.tableoid, o.oid, o.opcnamespace, o.xmin from pg_catalog.pg_opclass o
       union all
       select o.tableoid, o.oid, o.opfnamespace, o.xmin from pg_catalog.pg_opfamily o
       union all
       select c.tableoid, c.oid, c.collnamespace, c.xmin from pg_catalog.pg_collation c
       union all
       select c.tableoid, c.oid, c.connamespace, c.xmin from pg_catalog.pg_conversion c
       union all
       select c.tableoid, c.oid, c.cfgnamespace, c.xmin from pg_catalog.pg_ts_config c
       union all
       select d.tableoid, d.oid, d.dictnamespace, d.xmin from pg_catalog.pg_ts_dict d
       union all
       select p.tableoid, p.oid, p.prsnamespace, p.xmin from pg_catalog.pg_ts_parser p
       union all
       select t.tableoid, t.oid, t.tmplnamespace, t.xmin from pg_catalog.pg_ts_template t
       union all
       select c.tableoid, c.oid, null, c.xmin from pg_catalog.pg_cast c
       union all
       select e.tableoid, e.oid, null, e.xmin from pg_catalog.pg_extension e
        where e.extname <> 'steep_repl'
       union all
       select f.tableoid, f.oid, null, f.xmin from pg_catalog.pg_foreign_data_wrapper f
       union all
       select s.tableoid, s.oid, null, s.xmin from pg_catalog.pg_foreign_server s
       union all
       select e.tableoid, e.oid, null, e.xmin from pg_catalog.pg_event_trigger e
       union all
       select l.tableoid, l.oid, null, l.xmin from pg_catalog.pg_language l
     )
select o.class_id               as class_id,
       o.object_id              as object_id,
       o.made_by::text::bigint  as made_by
  from objects                      o
  left join pg_catalog.pg_namespace n on n.oid = o.namespace_id
 where o.object_id >= 16384
   and (n.oid is null or n.nspname not in ('information_schema', 'steep_repl', 'steep_mark') and n.nspname !~ '^pg_(toast|temp)')
   and not exists (select
                     from pg_catalog.pg_depend d
                    where d.classid = o.class_id
                      and d.objid = o.object_id
                      and d.objsubid = 0
                      and d.deptype in ('i', 'e'))
 order by o.class_id, o.object_id;
