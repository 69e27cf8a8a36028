-- Ends sessions of ours on this database, all but this one.
-- $1 what their application names end with.  PostgreSQL 15+.
select a.pid                                    as pid,
       a.application_name                       as application_name,
       pg_catalog.pg_terminate_backend(a.pid)   as was_signalled
  from pg_catalog.pg_stat_activity a
 where pg_catalog.starts_with(a.application_name, 'steep-')
   and pg_catalog.right(a.application_name, pg_catalog.length($1::text)) = $1::text
   and a.datname = pg_catalog.current_database()
   and a.pid <> pg_catalog.pg_backend_pid();
