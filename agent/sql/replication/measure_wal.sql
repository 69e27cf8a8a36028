-- How much WAL the server writes a day, by what it has written since its statistics were reset; null: less than a minute ago.
-- No parameters.  PostgreSQL 15+.
select case when t.seconds >= 60 then (w.wal_bytes / t.seconds * 86400)::bigint end as bytes_a_day
  from pg_catalog.pg_stat_wal w
 cross join lateral (select extract(epoch from pg_catalog.clock_timestamp() - w.stats_reset) as seconds) t;
