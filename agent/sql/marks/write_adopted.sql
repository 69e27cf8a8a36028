-- Writes that a physical copy is another node's from now on.  PostgreSQL 15+; the table must exist.
-- $1 the preparation's short id; $2 the node; $3 the timeline it left; $4 where; $5 SHA-256 of the WAL before, or empty.
insert into steep_mark.adopted (prepare_id, node_id, timeline, lsn, wal_sha256)
values ($1::text, $2::text, $3::integer, $4::pg_lsn, $5::bytea)
    on conflict (prepare_id) do nothing;
