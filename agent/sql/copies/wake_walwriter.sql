-- Commits a WAL record that says nothing. Committed asynchronously, it wakes the walwriter where a megabyte or more waits.
-- PostgreSQL 15+.
select pg_catalog.pg_logical_emit_message(false, 'steep', '');
