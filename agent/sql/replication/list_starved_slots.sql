-- Slots that nobody reads whose WAL is not there any more, although PostgreSQL still counts on it.
-- No parameters. Only for a role that may look into pg_wal.  PostgreSQL 15+.
select s.slot_name::text                                                     as name,
       pg_catalog.pg_walfile_name(s.restart_lsn + 1)                         as file
  from pg_catalog.pg_replication_slots s
 where not s.active
   and s.wal_status in ('reserved', 'extended')
   and s.restart_lsn < pg_catalog.pg_current_wal_lsn()
   -- The timeline is the first third of a file's name: after a failover the old one's files count as well.
   and not exists (select
                     from pg_catalog.pg_ls_waldir() f
                    where pg_catalog.right(f.name, 16)
                          = pg_catalog.right(pg_catalog.pg_walfile_name(s.restart_lsn + 1), 16))
 order by s.slot_name;
