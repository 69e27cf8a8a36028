-- Whether a session of this database holds an advisory lock.  PostgreSQL 15+.
-- $1 its key.
select exists (select
                 from pg_catalog.pg_locks l
                where l.locktype = 'advisory'
                  and l.granted
                  and l.objsubid = 1
                  and (l.classid::bigint << 32 | l.objid::bigint) = $1::bigint
                  and l.database = (select d.oid
                                      from pg_catalog.pg_database d
                                     where d.datname = pg_catalog.current_database())) as is_seen;
