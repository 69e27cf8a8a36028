-- How old a row version is that sessions of ours keep from being cleaned up, by the operation's twelve digits.
-- No parameters.  PostgreSQL 15+.
select pg_catalog.right(a.application_name, 12)                 as digits,
       max(greatest(pg_catalog.age(a.backend_xmin), pg_catalog.age(a.backend_xid)))::bigint as xmin_age
  from pg_catalog.pg_stat_activity a
 where pg_catalog.starts_with(a.application_name, 'steep-keeper-')
   and a.backend_xmin is not null
 group by 1;
