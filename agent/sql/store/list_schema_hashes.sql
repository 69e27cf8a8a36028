-- Names and fingerprints of everything known of a node, without the definitions.  PostgreSQL 15+.
-- $1 the node.
select null                as kind,
       f.table_schema      as object_schema,
       f.table_name        as object_name,
       f.fingerprint       as fingerprint,
       f.shape             as shape
  from steep_repl.schema_fingerprints as f
 where f.node_id = $1::text
 union all
select o.kind              as kind,
       o.object_schema     as object_schema,
       o.object_name       as object_name,
       o.fingerprint       as fingerprint,
       null                as shape
  from steep_repl.schema_objects as o
 where o.node_id = $1::text
 order by kind nulls first, object_schema, object_name;
