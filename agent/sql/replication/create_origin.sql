-- Creates an origin unless it is there.
-- $1 its name.  PostgreSQL 15+.
select pg_catalog.pg_replication_origin_create($1::text)
 where not exists (select from pg_catalog.pg_replication_origin o where o.roname = $1::text);
