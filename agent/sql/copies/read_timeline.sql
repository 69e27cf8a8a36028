-- The timeline the server writes on, as eight hexadecimal digits, and the size of its WAL files.  PostgreSQL 15+; not in recovery.
-- No parameters.
select pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)  as timeline,
       i.bytes_per_wal_segment                                                                as segment_bytes
  from pg_catalog.pg_control_init() i;
