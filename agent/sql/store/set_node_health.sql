-- Says how a node is, as of now.  PostgreSQL 15+.
-- $1 node id; $2 health; $3 why it is not ok, or empty.
update steep_repl.nodes
   set health        = $2::text,
       health_reason = $3::text,
       last_seen     = pg_catalog.now()
 where node_id = $1::text;
