-- Operations whose id begins like this, or whose short name (the last twelve digits) is this; newest first.
-- $1 lower-case hexadecimal digits and dashes; $2 how many at most.  PostgreSQL 15+.
select op_id,
       kind,
       target,
       source,
       method,
       request,
       status,
       step,
       started_by,
       started_at,
       ended_at,
       failure
  from steep_repl.operations
 where pg_catalog.starts_with(op_id::text, $1::text)
    or pg_catalog.right(op_id::text, 12) = $1::text
 order by started_at desc
 limit $2::bigint;
