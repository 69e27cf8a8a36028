-- The types and sequences known of a node.  PostgreSQL 15+.
-- $1 the node.
select o.kind           as kind,
       o.object_schema  as object_schema,
       o.object_name    as object_name,
       o.fingerprint    as fingerprint,
       o.definition     as definition,
       o.captured_at    as captured_at
  from steep_repl.schema_objects as o
 where o.node_id = $1::text
 order by o.kind, o.object_schema, o.object_name;
