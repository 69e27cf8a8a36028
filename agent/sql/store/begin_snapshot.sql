-- Writes down a snapshot that is about to be made.  PostgreSQL 15+.
-- $1 the operation that makes it; $2 the node; $3 its directory; $4 when it expires.
insert into steep_repl.snapshots (snapshot_id, op_id, source_node, storage, status, expires_at)
values ($1::uuid, $1::uuid, $2::text, $3::text, 'generating', $4::timestamptz)
    on conflict (snapshot_id) do nothing;
