-- Writes down what another node told of its types and sequences; never over this node's own.  PostgreSQL 15+.
-- $1 the node; $2 a JSON array with one object each, keys as the columns below.
insert into steep_repl.schema_objects as o
       (node_id, kind, object_schema, object_name, fingerprint, definition, captured_at)
select $1::text, t.kind, t.object_schema, t.object_name, t.fingerprint, t.definition, t.captured_at
  from pg_catalog.jsonb_to_recordset($2::jsonb)
       as t (kind text, object_schema text, object_name text, fingerprint text, definition jsonb,
             captured_at timestamptz)
 where not exists (select
                     from steep_repl.identity as i
                    where i.node_id = $1::text)
    on conflict (node_id, kind, object_schema, object_name) do update
   set fingerprint = excluded.fingerprint,
       definition  = excluded.definition,
       captured_at = excluded.captured_at;
