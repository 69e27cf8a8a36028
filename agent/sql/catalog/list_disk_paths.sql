-- Where the database's files are, as far as the role may know. Empty: inside the data directory.
-- No parameters.  PostgreSQL 15+.
select (select s.setting from pg_catalog.pg_settings s where s.name = 'data_directory') as data_directory,
       array(select pg_catalog.pg_tablespace_location(t.oid)
               from pg_catalog.pg_tablespace t
              where pg_catalog.pg_tablespace_location(t.oid) <> ''
              order by t.oid)                                                           as tablespaces,
       pg_catalog.pg_tablespace_location(d.dattablespace)                               as default_tablespace
  from pg_catalog.pg_database d
 where d.datname = pg_catalog.current_database();
