-- Where a snapshot of this node lies, and whether it can be read.  PostgreSQL 15+.
-- $1 its id as people know it, or the operation that made it.
select storage,
       status,
       expires_at
  from steep_repl.snapshots
 where snapshot_id::text = $1::text
    or 'snap_' || pg_catalog.right(snapshot_id::text, 12) = $1::text
 order by created_at desc
 limit 1;
