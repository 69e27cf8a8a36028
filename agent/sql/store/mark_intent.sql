-- Says that what was made is there, or is gone again.  PostgreSQL 15+.
-- $1 intent; $2 live or undone. One that has ended stays as it is.
update steep_repl.intents
   set state    = $2::text,
       ended_at = case when $2::text = 'undone' then pg_catalog.clock_timestamp() end
 where id = $1::bigint
   and state in ('planned', 'live');
