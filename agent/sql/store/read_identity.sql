-- Which node this database says it is, and which database this really is.  PostgreSQL 15+.
-- No parameters; node_id is null where no agent has written it yet. The table must exist.
select i.node_id                                as node_id,
       i.mesh                                   as mesh,
       i.system_identifier                      as recorded_system_identifier,
       i.database                               as recorded_database,
       c.system_identifier::text                as system_identifier,
       pg_catalog.current_database()::text      as database
  from pg_catalog.pg_control_system()           as c
  left join steep_repl.identity i on i.only_row;
