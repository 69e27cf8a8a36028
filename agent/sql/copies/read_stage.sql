-- How far a server that was copied has come.  PostgreSQL 15+.
-- No parameters.
select pg_catalog.pg_is_in_recovery()                                                  as is_in_recovery,
       (select f.size from pg_catalog.pg_stat_file('standby.signal', true) f) is not null
                                                                                       as is_standby,
       pg_catalog.current_setting('max_logical_replication_workers')::integer > 0      as has_workers;
