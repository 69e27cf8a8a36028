-- Writes down anew what a pending intent is about.  PostgreSQL 15+.
-- $1 operation; $2 kind; $3 name; $4 all that is needed to undo it.
update steep_repl.intents
   set detail = $4::jsonb
 where op_id = $1::uuid
   and kind = $2::text
   and name = $3::text
   and state in ('planned', 'live');
