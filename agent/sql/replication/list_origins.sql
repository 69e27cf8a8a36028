-- Replication origins whose name begins with a prefix, and how far each has come.
-- $1 the prefix.  PostgreSQL 15+.
select o.roname                          as name,
       s.remote_lsn                      as remote_lsn
  from pg_catalog.pg_replication_origin o
  left join pg_catalog.pg_replication_origin_status s on s.local_id = o.roident
 where pg_catalog.starts_with(o.roname, $1::text)
 order by o.roname;
