-- A page of what is known of a node's tables, by name.  PostgreSQL 15+.
-- $1 the node; $2, $3 schema and name of the last table of the page before (null: none); $4 rows a page.
select f.table_schema        as table_schema,
       f.table_name          as table_name,
       f.column_count        as column_count,
       f.fingerprint         as fingerprint,
       f.fingerprint_sorted  as fingerprint_sorted,
       f.shape               as shape,
       f.column_definitions  as column_definitions,
       f.shape_definition    as shape_definition,
       f.captured_at         as captured_at
  from steep_repl.schema_fingerprints as f
 where f.node_id = $1::text
   and (f.table_schema, f.table_name) > (coalesce($2::text, ''), coalesce($3::text, ''))
 order by f.table_schema, f.table_name
 limit $4::bigint;
