-- Subscriptions Steep made here, as PostgreSQL has them; also those that somebody else dropped. One statement, so that
-- what an operation has in hand, as a pause has, is told as of the same moment.
-- No parameters.  PostgreSQL 15+.
select coalesce(s.subname::text, i.name)                                    as name,
       s.oid is not null                                                    as is_there,
       coalesce(s.subenabled, false)                                        as is_enabled,
       coalesce(s.subslotname::text, '')                                    as slot,
       (select w.pid
          from pg_catalog.pg_stat_subscription w
         where w.subid = s.oid
           and w.relid is null
           and coalesce(pg_catalog.to_jsonb(w) ->> 'leader_pid', w.pid::text) = w.pid::text) as worker_pid,
       coalesce(c.apply_error_count, 0)                                     as apply_errors,
       (select coalesce(pg_catalog.jsonb_object_agg(pg_catalog.substr(k.key, 7), k.value::bigint), '{}')
          from pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(c)) k
         where pg_catalog.starts_with(k.key, 'confl_')
           and k.value is not null)                                         as conflicts,
       exists (select
                 from steep_repl.intents p
                where p.state in ('planned', 'live')
                  and p.kind in ('pause', 'subscription')
                  and p.name = coalesce(s.subname::text, i.name))           as is_in_hand,
       (select l.reason
          from steep_repl.lost_slots l
         where l.slot_name = s.subslotname::text
         limit 1)                                                           as lost
  from (select n.oid, n.subname, n.subenabled, n.subslotname
          from pg_catalog.pg_subscription n
         where n.subdbid = (select d.oid
                              from pg_catalog.pg_database d
                             where d.datname = pg_catalog.current_database())
           and pg_catalog.starts_with(n.subname::text, 'steep_from_')) s
  full join (select distinct k.name
               from steep_repl.intents k
              where k.kind = 'subscription'
                and k.state = 'kept') i on i.name = s.subname::text
  left join pg_catalog.pg_stat_subscription_stats c on c.subid = s.oid
 order by name;
