-- Writes down that a slot no longer carries all that was written since; the first reason stays.
-- $1 the node that had it, $2 its name, $3 the node it was kept for, $4 the reason.  PostgreSQL 15+.
insert into steep_repl.lost_slots (source_node, slot_name, target_node, reason)
values ($1::text, $2::text, $3::text, $4::text)
on conflict (source_node, slot_name) do nothing;
