-- Says that what an operation has made is there to stay no longer, so that it can be undone.  PostgreSQL 15+.
-- $1 operation.
update steep_repl.intents
   set state    = 'live',
       ended_at = null
 where op_id = $1::uuid
   and state = 'kept';
