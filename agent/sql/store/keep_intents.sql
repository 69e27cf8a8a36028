-- Says that all an operation has made is there to stay; also what was planned by a run of the agent that died, and made
-- by a later one.  PostgreSQL 15+.
-- $1 operation.
update steep_repl.intents
   set state    = 'kept',
       ended_at = pg_catalog.clock_timestamp()
 where op_id = $1::uuid
   and state in ('planned', 'live');
