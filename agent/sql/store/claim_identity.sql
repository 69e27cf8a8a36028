-- Writes whose database this is, unless somebody has already.  PostgreSQL 15+.
-- $1 node id; $2 mesh.
insert into steep_repl.identity (node_id, mesh, system_identifier, database)
select $1::text, $2::text, c.system_identifier::text, pg_catalog.current_database()
  from pg_catalog.pg_control_system() as c
    on conflict (only_row) do nothing;
