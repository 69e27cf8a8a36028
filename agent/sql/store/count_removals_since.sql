-- Removals of nodes this node has heard of since a moment.  PostgreSQL 15+.
-- $1 the moment.
select pg_catalog.count(*) as removals
  from steep_repl.removals
 where heard_at >= $1::timestamptz;
