-- Writes the mark of a preparation, which every backup made from here on holds.  PostgreSQL 15+.
-- $1 its short id; $2 the node; $3 the server's timeline.
insert into steep_mark.prepared (prepare_id, node_id, system_identifier, timeline)
select $1::text, $2::text, c.system_identifier::text, $3::integer
  from pg_catalog.pg_control_system() c
    on conflict (prepare_id) do nothing;
