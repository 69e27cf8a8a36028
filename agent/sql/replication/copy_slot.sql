-- Makes a logical slot that begins exactly where another one stands.
-- $1 that one; $2 the new one's name.  PostgreSQL 15+.
select c.lsn as lsn
  from pg_catalog.pg_copy_logical_replication_slot($1::text, $2::text) c;
