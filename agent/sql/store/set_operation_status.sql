-- Moves an operation to another status; the table's trigger refuses illegal moves.  PostgreSQL 15+.
-- $1 operation; $2 status; $3 why it failed, or null to keep what is recorded.
update steep_repl.operations as o
   set status   = $2::text,
       failure  = coalesce($3::jsonb, o.failure),
       ended_at = case
                    when $2::text in ('completed', 'failed', 'cancelled')
                    then coalesce(o.ended_at, pg_catalog.clock_timestamp())
                  end
 where o.op_id = $1::uuid;
