-- Who serves this connection; on PostgreSQL 17+ also lifts the one timeout that cannot be set at connect.
-- No parameters.  PostgreSQL 15+.
select pg_catalog.pg_backend_pid()                                     as backend_pid,
       pg_catalog.current_setting('server_version_num')::integer       as version_number,
       pg_catalog.getdatabaseencoding()::text                          as encoding,
       case
         when pg_catalog.current_setting('server_version_num')::integer >= 170000
         then pg_catalog.set_config('transaction_timeout', '0', false)
       end                                                             as transaction_timeout;
