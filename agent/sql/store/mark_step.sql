-- Says how a step fares; a step that runs becomes the operation's current one.  PostgreSQL 15+.
-- $1 operation; $2 step; $3 status.
with marked as (
    update steep_repl.operation_steps as s
       set status     = $3::text,
           started_at = case
                          when $3::text = 'pending' then null
                          when $3::text = 'running' then pg_catalog.clock_timestamp()
                          else coalesce(s.started_at, pg_catalog.clock_timestamp())
                        end,
           ended_at   = case when $3::text not in ('pending', 'running') then pg_catalog.clock_timestamp() end
     where s.op_id = $1::uuid
       and s.name = $2::text
    returning s.op_id, s.name
), current as (
    update steep_repl.operations as o
       set step = m.name
      from marked m
     where o.op_id = m.op_id
       and $3::text = 'running'
)
select pg_catalog.count(*) as marked
  from marked;
