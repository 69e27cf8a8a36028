-- Drops an origin if it is there.
-- $1 its name.  PostgreSQL 15+.
select pg_catalog.pg_replication_origin_drop(o.roname)
  from pg_catalog.pg_replication_origin o
 where o.roname = $1::text;
