-- Moves a node to another state; the table's trigger refuses illegal moves.  PostgreSQL 15+.
-- $1 node id; $2 new state; $3 operation, or null to keep the one recorded.
update steep_repl.nodes as n
   set init_state        = $2::text,
       op_id             = coalesce($3::uuid, n.op_id),
       init_started_at   = case when $2::text = 'preparing' then pg_catalog.now() else n.init_started_at end,
       init_completed_at = case
                             when $2::text = 'preparing' then null
                             -- Whole again without a new initialization: the old one counts.
                             when $2::text = 'synchronized' and n.init_state = 'diverged'
                             then coalesce(n.init_completed_at, pg_catalog.now())
                             when $2::text = 'synchronized' then pg_catalog.now()
                             else n.init_completed_at
                           end
 where n.node_id = $1::text;
