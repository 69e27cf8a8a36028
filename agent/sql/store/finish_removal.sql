-- Says that this node has done its part of a removal.  PostgreSQL 15+.
-- $1 the operation.
update steep_repl.removals
   set done_at = pg_catalog.clock_timestamp()
 where op_id = $1::uuid
   and done_at is null;
