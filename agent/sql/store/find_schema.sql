-- Whether the server takes writes, and how far our schema is there.  PostgreSQL 15+.
-- No parameters.
select pg_catalog.pg_is_in_recovery()                                        as in_recovery,
       c.system_identifier::text                                             as system_identifier,
       pg_catalog.current_database()::text                                   as database,
       pg_catalog.to_regclass('steep_repl.identity') is not null             as has_identity,
       pg_catalog.to_regclass('steep_repl.migrations') is not null           as has_migrations
  from pg_catalog.pg_control_system() as c;
