-- Says where a snapshot begins and what keeps the rest.  PostgreSQL 15+.
-- $1 the snapshot; $2 LSN; $3 slot; $4 publication.
update steep_repl.snapshots
   set lsn              = $2::pg_lsn,
       slot_name        = $3::text,
       publication_name = $4::text
 where snapshot_id = $1::uuid;
