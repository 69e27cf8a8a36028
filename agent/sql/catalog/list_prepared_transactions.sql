-- Prepared transactions anywhere on the server, oldest first: a new slot waits for them.
-- No parameters.  PostgreSQL 15+.
select p.gid                                                                     as gid,
       extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::float8     as age_seconds,
       p.owner::text                                                             as owner,
       p.database::text                                                          as database
  from pg_catalog.pg_prepared_xacts p
 order by p.prepared;
