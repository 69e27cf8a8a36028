-- Drops the origins that Steep made on the source.  PostgreSQL 15+.
-- No parameters.
select pg_catalog.pg_replication_origin_drop(o.roname)
  from pg_catalog.pg_replication_origin o
 where pg_catalog.starts_with(o.roname, 'steep_');
