-- Writes down what another node told of some of its tables; never over this node's own.  PostgreSQL 15+.
-- $1 the node; $2 a JSON array with one object a table, keys as the columns below.
insert into steep_repl.schema_fingerprints as f
       (node_id, table_schema, table_name, column_count, fingerprint, fingerprint_sorted, shape, column_definitions,
        shape_definition, captured_at)
select $1::text, t.table_schema, t.table_name, t.column_count, t.fingerprint, t.fingerprint_sorted, t.shape,
       t.column_definitions, t.shape_definition, t.captured_at
  from pg_catalog.jsonb_to_recordset($2::jsonb)
       as t (table_schema text, table_name text, column_count integer, fingerprint text, fingerprint_sorted text,
             shape text, column_definitions jsonb, shape_definition jsonb, captured_at timestamptz)
 where not exists (select
                     from steep_repl.identity as i
                    where i.node_id = $1::text)
    on conflict (node_id, table_schema, table_name) do update
   set column_count       = excluded.column_count,
       fingerprint        = excluded.fingerprint,
       fingerprint_sorted = excluded.fingerprint_sorted,
       shape              = excluded.shape,
       column_definitions = excluded.column_definitions,
       shape_definition   = excluded.shape_definition,
       captured_at        = excluded.captured_at;
