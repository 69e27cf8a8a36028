-- Writes down that this node is about to be prepared for a backup.  PostgreSQL 15+.
-- $1 operation; $2 purpose; $3 target; $4 slot; $5 publication; $6 selection; $7 who asked; $8 when it expires.
insert into steep_repl.preparations
       (op_id, purpose, target_node, slot_name, publication, selection, prepared_by, expires_at)
values ($1::uuid, $2::text, $3::text, $4::text, $5::text, $6::bytea, $7::text, $8::timestamptz);
