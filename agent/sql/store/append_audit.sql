-- Adds a row to the audit log; the table's trigger numbers, dates and seals it.  PostgreSQL 15+.
-- $1 actor's kind; $2 actor; $3 role or null; $4 action; $5 target; $6 operation or null; $7 detail.
insert into steep_repl.audit_log (actor_kind, actor, actor_role, action, target, op_id, detail)
values ($1::text, $2::text, $3::text, $4::text, $5::text, $6::uuid, $7::jsonb);
