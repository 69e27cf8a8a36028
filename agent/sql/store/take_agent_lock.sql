-- Tries to become the one agent of this database for as long as the session lasts.  PostgreSQL 15+.
-- $1, $2 the lock's two keys. No statement of this session may wait long for a lock: others wait behind it.
select pg_catalog.pg_try_advisory_lock($1::integer, $2::integer)             as taken,
       pg_catalog.set_config('lock_timeout', '20s', false)                   as lock_timeout;
