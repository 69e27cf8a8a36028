-- What is known of some tables of a node.  PostgreSQL 15+.
-- $1 the node; $2, $3 their schemas and names.
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
  join rows from (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) as wanted (table_schema, table_name)
    on wanted.table_schema = f.table_schema
   and wanted.table_name = f.table_name
 where f.node_id = $1::text
 order by f.table_schema, f.table_name;
