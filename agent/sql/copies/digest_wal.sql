-- SHA-256 of a part of a WAL file; null where the file is not there.  PostgreSQL 15+.
-- $1 the file's name; $2 where to begin in it; $3 how many bytes.
select pg_catalog.sha256(pg_catalog.pg_read_binary_file('pg_wal/' || $1::text, $2::bigint, $3::bigint, true)) as digest;
