-- Captures this node's types and sequences.  PostgreSQL 15+.
-- $1 the node.
select steep_repl.capture_objects($1::text) as changed;
