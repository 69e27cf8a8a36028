-- Says that something operations of the past made, and kept, is gone.  PostgreSQL 15+.
-- $1 kind; $2 name.
update steep_repl.intents
   set state    = 'undone',
       ended_at = pg_catalog.clock_timestamp()
 where kind = $1::text
   and name = $2::text
   and state = 'kept';
