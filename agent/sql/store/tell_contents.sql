-- Says of every detour of an operation what its tables hold now.  PostgreSQL 15+.
-- $1 operation; $2 old, new or neither.
update steep_repl.intents
   set detail = pg_catalog.jsonb_set(detail, '{contents}', pg_catalog.to_jsonb($2::text))
 where op_id = $1::uuid
   and kind = 'detour'
   and state in ('planned', 'live');
