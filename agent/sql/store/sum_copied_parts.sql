-- What an operation has copied, by table.  PostgreSQL 15+.
-- $1 operation.
select p.table_schema                         as table_schema,
       p.table_name                           as table_name,
       pg_catalog.count(*)                    as parts,
       pg_catalog.sum(p.row_count)::bigint    as row_count,
       pg_catalog.sum(p.byte_count)::bigint   as byte_count
  from steep_repl.copied_parts p
 where p.op_id = $1::uuid
 group by p.table_schema, p.table_name
 order by p.table_schema, p.table_name;
