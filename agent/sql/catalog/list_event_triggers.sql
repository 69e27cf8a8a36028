-- Event triggers that call one of the given functions.
-- $1 the functions' oids.  PostgreSQL 15+.
select e.tableoid          as class_id,
       e.oid               as object_id
  from pg_catalog.pg_event_trigger e
 where e.evtfoid = any ($1::oid[])
 order by e.oid;
