-- Takes, or not, the lock under which a node's schema is brought up to date; held until the session ends.
-- PostgreSQL 15+.
select pg_catalog.pg_try_advisory_lock(1937007984, 5)  as taken;
