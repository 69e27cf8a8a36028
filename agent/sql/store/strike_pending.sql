-- Says that a node has heard of a removal, or will never need to.  PostgreSQL 15+.
-- $1 the node; $2 the operation; null: of all removals but its own.
update steep_repl.removals
   set pending = pg_catalog.array_remove(pending, $1::text)
 where $1::text = any (pending)
   and (op_id = $2::uuid or $2::uuid is null and node_id <> $1::text);
