-- Forgets tables that another node no longer has.  PostgreSQL 15+.
-- $1 the node; $2, $3 their schemas and names.
delete from steep_repl.schema_fingerprints as f
 using rows from (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) as gone (table_schema, table_name)
 where f.node_id = $1::text
   and f.table_schema = gone.table_schema
   and f.table_name = gone.table_name
   and not exists (select
                     from steep_repl.identity as i
                    where i.node_id = $1::text);
