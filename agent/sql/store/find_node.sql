-- One node's row.  PostgreSQL 15+.
-- $1 node id.
select n.node_id             as node_id,
       n.init_state          as init_state,
       n.init_source_node    as init_source_node,
       n.init_started_at     as init_started_at,
       n.init_completed_at   as init_completed_at,
       n.op_id               as op_id,
       n.health              as health,
       n.health_reason       as health_reason,
       n.last_seen           as last_seen,
       n.agent_version       as agent_version,
       n.postgres_version    as postgres_version
  from steep_repl.nodes n
 where n.node_id = $1::text;
