-- Ends preparations that an earlier run of the agent has not brought to their end.  PostgreSQL 15+.
-- No parameters.
update steep_repl.preparations
   set ended_at   = pg_catalog.clock_timestamp(),
       end_reason = 'its agent ended before it was made'
 where ended_at is null
   and lsn is null;
