-- Ends preparations that an earlier run of the agent has not brought to their end, and forgets snapshots, which ended with
-- it.  PostgreSQL 15+.
-- No parameters.
update steep_repl.preparations
   set snapshot   = '',
       ended_at   = case when lsn is null then pg_catalog.clock_timestamp() end,
       end_reason = case when lsn is null then 'its agent ended before it was made' end
 where ended_at is null
   and (lsn is null or snapshot <> '');
