-- Whether the server's processes find a file of the machine.
-- $1 its path.  PostgreSQL 15+.
select (pg_catalog.pg_stat_file($1::text, true)).size is not null as is_there;
