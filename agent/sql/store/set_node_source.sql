-- Says which node a node is initialized from.  PostgreSQL 15+.
-- $1 node id; $2 its source, or null.
update steep_repl.nodes
   set init_source_node = $2::text
 where node_id = $1::text;
