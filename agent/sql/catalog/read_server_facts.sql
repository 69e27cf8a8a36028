-- What the server is, what it allows, and how much of that is in use.
-- No parameters.  PostgreSQL 15+.
select pg_catalog.current_setting('server_version_num')::integer               as version_number,
       pg_catalog.current_setting('server_version')                            as version_text,
       (select c.system_identifier from pg_catalog.pg_control_system() c)      as system_identifier,
       d.oid                                                                   as database_oid,
       d.datname::text                                                         as database,
       pg_catalog.pg_encoding_to_char(d.encoding)::text                        as encoding,
       pg_catalog.pg_database_size(d.oid)                                      as database_bytes,
       pg_catalog.current_setting('block_size')::integer                       as block_size,
       pg_catalog.pg_is_in_recovery()                                          as is_in_recovery,
       pg_catalog.current_setting('wal_level')                                 as wal_level,
       pg_catalog.current_setting('max_replication_slots')::integer            as max_replication_slots,
       (select count(*) from pg_catalog.pg_replication_slots)::integer         as used_replication_slots,
       pg_catalog.current_setting('max_wal_senders')::integer                  as max_wal_senders,
       (select count(*) from pg_catalog.pg_stat_replication)::integer          as used_wal_senders,
       pg_catalog.current_setting('max_logical_replication_workers')::integer  as max_logical_replication_workers,
       pg_catalog.current_setting('max_worker_processes')::integer             as max_worker_processes,
       (select count(*) from pg_catalog.pg_subscription s where s.subenabled)::integer
                                                                               as used_logical_replication_workers,
       -- Before 18 origins share the limit of slots.
       coalesce(pg_catalog.current_setting('max_active_replication_origins', true),
                pg_catalog.current_setting('max_replication_slots'))::integer  as max_origins,
       (select count(*) from pg_catalog.pg_replication_origin)::integer        as used_origins,
       (select nullif(s.setting::bigint, -1) * 1024 * 1024
          from pg_catalog.pg_settings s
         where s.name = 'max_slot_wal_keep_size')                              as max_slot_wal_keep_bytes,
       -- Up to 16; -1: never.
       (select nullif(s.setting::integer, -1)
          from pg_catalog.pg_settings s
         where s.name = 'old_snapshot_threshold')                              as snapshot_minutes,
       pg_catalog.current_setting('max_sync_workers_per_subscription')::integer
                                                                               as max_sync_workers,
       pg_catalog.current_setting('max_connections')::integer                  as max_connections,
       (select count(*) from pg_catalog.pg_stat_activity a
         where a.datid is not null)::integer                                   as used_connections,
       pg_catalog.current_setting('max_locks_per_transaction')::integer
         * (pg_catalog.current_setting('max_connections')::integer
            + pg_catalog.current_setting('max_prepared_transactions')::integer) as lock_slots
  from pg_catalog.pg_database d
 where d.datname = pg_catalog.current_database();
