-- Forgets types and sequences that another node no longer has.  PostgreSQL 15+.
-- $1 the node; $2, $3, $4 their kinds, schemas and names.
delete from steep_repl.schema_objects as o
 using rows from (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[]))
       as gone (kind, object_schema, object_name)
 where o.node_id = $1::text
   and o.kind = gone.kind
   and o.object_schema = gone.object_schema
   and o.object_name = gone.object_name
   and not exists (select
                     from steep_repl.identity as i
                    where i.node_id = $1::text);
