-- Says that a snapshot failed or was deleted.  PostgreSQL 15+.
-- $1 the snapshot; $2 failed or deleted.
update steep_repl.snapshots
   set status = $2::text
 where snapshot_id = $1::uuid
   and status in ('generating', 'complete');
