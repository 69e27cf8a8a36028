-- What was prepared is there.  PostgreSQL 15+.
-- $1 operation; $2 where the slot begins; $3 the snapshot that is held, or empty.
update steep_repl.preparations
   set lsn = $2::pg_lsn,
       snapshot = $3::text
 where op_id = $1::uuid;
