-- Changes what is known of a preparation; null leaves it as it is.  PostgreSQL 15+.
-- $1 operation; $2 when it expires; $3 its snapshot is not held any more; $4 it was told that it expires soon;
-- $5 the operation that completes a node from it.
update steep_repl.preparations
   set expires_at = coalesce($2::timestamptz, expires_at),
       snapshot   = case when $3::boolean then '' else snapshot end,
       warned_at  = case when $2::timestamptz is not null then null
                         when $4::boolean then pg_catalog.clock_timestamp()
                         else warned_at end,
       taken_by   = coalesce($5::uuid, taken_by)
 where op_id = $1::uuid
   and ended_at is null;
