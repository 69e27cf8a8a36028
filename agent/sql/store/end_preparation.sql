-- A preparation is over.  PostgreSQL 15+.
-- $1 operation; $2 why.
update steep_repl.preparations
   set ended_at = pg_catalog.clock_timestamp(),
       end_reason = $2::text,
       snapshot = ''
 where op_id = $1::uuid
   and ended_at is null;
