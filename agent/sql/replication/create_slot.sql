-- Makes a logical slot without a snapshot; waits for every open transaction that has written.
-- $1 its name.  PostgreSQL 15+.
select c.lsn as lsn
  from pg_catalog.pg_create_logical_replication_slot($1::text, 'pgoutput') c;
