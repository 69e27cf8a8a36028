-- The same as wake_walwriter, where a megabyte or more waits.  PostgreSQL 15+.
select pg_catalog.pg_logical_emit_message(false, 'steep', '')
 where pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn()) >= 1048576;
