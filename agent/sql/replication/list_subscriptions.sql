-- Subscriptions of this database and how their workers fare. Connection strings are never read.
-- $1 only the subscription of this name; null: all.  PostgreSQL 15+.
select s.oid                                                   as oid,
       s.subname::text                                         as name,
       s.subenabled                                            as is_enabled,
       -- Before 16 there is no such column: then it is the one found outside.
       (select suborigin = 'none'
          from pg_catalog.pg_subscription i
         where i.oid = s.oid)                                  as is_mutual,
       s.subslotname::text                                     as slot,
       s.subpublications                                       as publications,
       w.pid                                                   as worker_pid,
       w.received_lsn                                          as received_lsn,
       w.latest_end_lsn                                        as latest_end_lsn,
       w.last_msg_receipt_time                                 as last_message_at,
       coalesce(c.apply_error_count, 0)                        as apply_errors,
       coalesce(c.sync_error_count, 0)                         as copy_errors,
       coalesce(r.tables, 0)                                   as tables,
       coalesce(r.tables_ready, 0)                             as tables_ready
  from pg_catalog.pg_subscription s
  left join pg_catalog.pg_stat_subscription w
    on w.subid = s.oid
   and w.relid is null
   -- Parallel apply workers have a leader (16+); the leader itself is the worker meant.
   and coalesce(pg_catalog.to_jsonb(w) ->> 'leader_pid', w.pid::text) = w.pid::text
  left join pg_catalog.pg_stat_subscription_stats c on c.subid = s.oid
  left join lateral (select count(*)                                        as tables,
                            count(*) filter (where t.srsubstate = 'r')      as tables_ready
                       from pg_catalog.pg_subscription_rel t
                      where t.srsubid = s.oid) r on true
 cross join (select 'any'::text as suborigin) before_16
 where s.subdbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
   and ($1::text is null or s.subname = $1::text)
 order by s.subname;
