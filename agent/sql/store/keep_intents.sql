-- Says that all an operation has made is there to stay.  PostgreSQL 15+.
-- $1 operation.
update steep_repl.intents
   set state    = 'kept',
       ended_at = pg_catalog.clock_timestamp()
 where op_id = $1::uuid
   and state = 'live';
