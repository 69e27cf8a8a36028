-- Processes that apply what a subscription receives, parallel ones among them.
-- $1 the subscription.  PostgreSQL 15+.
select w.pid as pid
  from pg_catalog.pg_stat_subscription w
 where w.subname = $1::text
   and w.pid is not null
   and w.subid in (select s.oid
                     from pg_catalog.pg_subscription s
                     join pg_catalog.pg_database     d on d.oid = s.subdbid
                    where d.datname = pg_catalog.current_database());
