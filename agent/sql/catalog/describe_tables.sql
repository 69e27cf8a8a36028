-- Tables in full, without their columns. Sizes are those of the table itself, not of its partitions.
-- $1 their oids.  PostgreSQL 15+.
select c.oid                                                              as oid,
       n.nspname::text                                                    as schema_name,
       c.relname::text                                                    as table_name,
       c.relkind::text                                                    as kind,
       c.relpersistence::text                                             as persistence,
       c.relispartition                                                   as is_partition,
       rn.nspname::text                                                   as root_schema,
       rc.relname::text                                                   as root_name,
       s.bytes                                                            as bytes,
       s.heap_pages                                                       as heap_pages,
       -- As the planner does: the density last seen, times the pages of now; never analyzed: 100 bytes a row.
       case
         when c.reltuples < 0 then s.bytes / 100
         when c.relpages = 0  then c.reltuples::bigint
         else (c.reltuples / c.relpages * s.heap_pages)::bigint
       end                                                                as rows_estimate,
       (select count(*)
          from pg_catalog.pg_index i
         where i.indrelid = c.oid)
       + (select count(*)
            from pg_catalog.pg_constraint k
           where k.conrelid = c.oid
             and k.contype = 'f'
             and k.conparentid = 0)                                       as indexes,
       array(select i.indexrelid
               from pg_catalog.pg_index i
              where i.indrelid = c.oid)                                   as index_oids,
       array(select k.oid
               from pg_catalog.pg_constraint k
              where k.conrelid = c.oid
                and k.contype in ('p', 'u', 'x'))                         as constraint_oids,
       -- Generated columns are never sent, so a key that has one names no row; and from 18 on a whole row that has one.
       case
         when c.relkind <> 'r'                   then 'full'
         when c.relreplident = 'f' and g.has_any then 'full_generated'
         when c.relreplident = 'f'               then 'full'
         when k.columns is null                  then 'missing'
         when k.has_generated                    then 'generated'
         else 'index'
       end                                                                as replica_identity,
       coalesce(k.columns, '{}')                                          as identity_columns,
       pg_catalog.row_security_active(c.oid)                              as row_security_hides,
       pg_catalog.has_table_privilege(c.oid, 'select')
         and pg_catalog.has_schema_privilege(n.oid, 'usage')              as may_select,
       pg_catalog.pg_has_role(c.relowner, 'usage')                        as may_publish,
       pg_catalog.pg_get_userbyid(c.relowner)::text                       as owner,
       coalesce(pg_catalog.pg_relation_filenode(c.oid), 0::oid)           as file_node
  from pg_catalog.pg_class          c
  join pg_catalog.pg_namespace      n  on n.oid = c.relnamespace
  left join pg_catalog.pg_class     rc on c.relispartition
                                      and rc.oid = pg_catalog.pg_partition_root(c.oid)
  left join pg_catalog.pg_namespace rn on rn.oid = rc.relnamespace
 cross join lateral (select case c.relkind
                              when 'r' then coalesce(pg_catalog.pg_table_size(c.oid), 0)
                              else 0
                            end,
                            case c.relkind
                              when 'r' then coalesce(pg_catalog.pg_relation_size(c.oid), 0)
                                            / pg_catalog.current_setting('block_size')::bigint
                              else 0
                            end) s (bytes, heap_pages)
 cross join lateral (select exists (select
                                      from pg_catalog.pg_attribute a
                                     where a.attrelid = c.oid
                                       and a.attgenerated <> ''
                                       and not a.attisdropped)) g (has_any)
  left join lateral (select array_agg(a.attname::text order by a.attname),
                            bool_or(a.attgenerated <> '')
                       from pg_catalog.pg_index     i
                       join pg_catalog.pg_attribute a on a.attrelid = i.indrelid
                                                     and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                      where i.indrelid = c.oid
                        and i.indisvalid
                        and i.indimmediate
                        and case c.relreplident
                              when 'd' then i.indisprimary
                              when 'i' then i.indisreplident
                            end) k (columns, has_generated) on true
 where c.oid = any ($1::oid[])
   and c.relkind in ('r', 'p', 'f')
 order by n.nspname, c.relname;
