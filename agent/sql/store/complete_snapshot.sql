-- Says that a snapshot is complete.  PostgreSQL 15+.
-- $1 the snapshot; $2 what it holds; $3 bytes of all its files.
update steep_repl.snapshots
   set status       = 'complete',
       manifest     = $2::jsonb,
       size_bytes   = $3::bigint,
       completed_at = pg_catalog.clock_timestamp()
 where snapshot_id = $1::uuid;
