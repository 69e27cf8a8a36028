-- Takes away what was heard of nodes that were forgotten.  PostgreSQL 15+.
-- $1 ids of the nodes that stay.
delete
  from steep_repl.nodes n
 where n.is_hearsay
   and n.node_id <> all ($1::text[]);
