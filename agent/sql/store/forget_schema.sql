-- Forgets all that was known of another node's schema.  PostgreSQL 15+.
-- $1 the node.
with other as (
    select $1::text as node_id
     where not exists (select
                         from steep_repl.identity as i
                        where i.node_id = $1::text)
),
tables as (
    delete from steep_repl.schema_fingerprints as f
     using other
     where f.node_id = other.node_id
),
objects as (
    delete from steep_repl.schema_objects as o
     using other
     where o.node_id = other.node_id
)
delete from steep_repl.schema_environments as e
 using other
 where e.node_id = other.node_id;
