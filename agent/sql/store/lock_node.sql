-- The state of a node, which nobody else can move until the transaction ends.  PostgreSQL 15+.
-- $1 node id.
select n.init_state as init_state
  from steep_repl.nodes n
 where n.node_id = $1::text
   for no key update;
