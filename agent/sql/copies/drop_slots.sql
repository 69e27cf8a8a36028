-- Drops the slots that came with the files: those that nobody uses and that keep nothing written since.  PostgreSQL 15+.
-- $1 where the copy left its source.
select pg_catalog.pg_drop_replication_slot(s.slot_name)
  from pg_catalog.pg_replication_slots s
 where not s.active
   and not s.temporary
   and coalesce(s.restart_lsn, '0/0'::pg_lsn) < $1::pg_lsn;
