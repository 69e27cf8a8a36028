-- What this node was diverged for is over.
-- No parameters.  PostgreSQL 15+.
update steep_repl.divergences
   set ended_at = pg_catalog.clock_timestamp()
 where ended_at is null;
