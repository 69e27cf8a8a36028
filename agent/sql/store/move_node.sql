-- Moves a node to another state; the table's trigger refuses illegal moves.  PostgreSQL 15+.
-- $1 node id; $2 new state; $3 operation, or null to keep the one recorded.
update steep_repl.nodes as n
   set init_state        = $2::text,
       op_id             = coalesce($3::uuid, n.op_id),
       init_started_at   = case when $2::text = 'preparing' then pg_catalog.now() else n.init_started_at end,
       init_completed_at = case $2::text
                             when 'preparing' then null
                             when 'synchronized' then pg_catalog.now()
                             else n.init_completed_at
                           end
 where n.node_id = $1::text;
