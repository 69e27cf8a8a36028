-- Replication slots of this server, ours and others, with what they keep back.
-- $1 only the slot of this name; null: all.  PostgreSQL 15+ (columns that came later are read as what they are).
select s.slot_name::text                                                     as name,
       coalesce(s.plugin::text, '')                                          as plugin,
       coalesce(s.database::text, '')                                        as database,
       s.slot_type = 'logical'                                               as is_logical,
       s.temporary                                                           as is_temporary,
       s.active                                                              as is_active,
       s.active_pid                                                          as active_pid,
       s.confirmed_flush_lsn                                                 as confirmed_flush,
       greatest(pg_catalog.pg_wal_lsn_diff(w.written, s.restart_lsn), 0)::bigint as retained_bytes,
       greatest(pg_catalog.pg_wal_lsn_diff(w.written, s.confirmed_flush_lsn), 0)::bigint as unconfirmed_bytes,
       coalesce(s.wal_status, '')                                            as wal_status,
       s.safe_wal_size                                                       as safe_wal_bytes,
       (pg_catalog.to_jsonb(s) ->> 'inactive_since')::timestamptz            as inactive_since,
       coalesce(pg_catalog.to_jsonb(s) ->> 'invalidation_reason', '')        as invalidation_reason,
       greatest(pg_catalog.age(s.xmin), pg_catalog.age(s.catalog_xmin))::bigint as xmin_age
  from pg_catalog.pg_replication_slots s
 cross join (select case
                      when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                      else pg_catalog.pg_current_wal_lsn()
                    end) w (written)
 where $1::text is null
    or s.slot_name = $1::text
 order by s.slot_name;
