-- Says that it was told that a snapshot expires soon.  PostgreSQL 15+.
-- $1 the snapshot.
update steep_repl.snapshots
   set warned_at = pg_catalog.clock_timestamp()
 where snapshot_id = $1::uuid;
