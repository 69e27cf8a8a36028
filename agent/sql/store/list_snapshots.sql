-- Snapshots this node's agent made, newest first.  PostgreSQL 15+.
-- $1 also those that failed or were deleted.
select snapshot_id,
       source_node,
       lsn::text                       as lsn,
       storage,
       status,
       manifest,
       size_bytes,
       coalesce(slot_name, '')         as slot_name,
       coalesce(publication_name, '')  as publication_name,
       created_at,
       completed_at,
       expires_at,
       warned_at is not null           as is_warned
  from steep_repl.snapshots
 where $1::boolean
    or status in ('generating', 'complete')
 order by created_at desc
 limit 1000;
