-- Writes down something that is about to be made.  PostgreSQL 15+.
-- $1 operation; $2 step; $3 kind; $4 name; $5 all that is needed to undo it.
insert into steep_repl.intents (op_id, step, kind, name, detail)
values ($1::uuid, $2::text, $3::text, $4::text, $5::jsonb)
returning id;
