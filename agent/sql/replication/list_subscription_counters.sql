-- What PostgreSQL has counted for each subscription of this database: errors, and conflicts from 18 on.
-- No parameters.  PostgreSQL 15+ (the columns differ, so they are read as what they are).
select s.subname::text           as name,
       k.key                     as counter,
       k.value::bigint           as counted
  from pg_catalog.pg_subscription s
  join pg_catalog.pg_stat_subscription_stats c on c.subid = s.oid
 cross join lateral pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(c)) k
 where s.subdbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
   and (k.key in ('apply_error_count', 'sync_error_count') or pg_catalog.starts_with(k.key, 'confl_'))
   and k.value is not null;
