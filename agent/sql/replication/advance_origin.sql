-- Says how far an origin has come: a subscription that is enabled afterwards begins there, or at its slot's own
-- position where that is later.
-- $1 its name; $2 the publisher's LSN.  PostgreSQL 15+.
select pg_catalog.pg_replication_origin_advance($1::text, $2::pg_lsn);
