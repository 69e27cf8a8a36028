-- Writes the mark of a preparation, which every backup made from here on holds.  PostgreSQL 15+.
-- $1 its short id; $2 the node.
insert into steep_mark.prepared (prepare_id, node_id, system_identifier)
select $1::text, $2::text, c.system_identifier::text
  from pg_catalog.pg_control_system() c
    on conflict (prepare_id) do nothing;
