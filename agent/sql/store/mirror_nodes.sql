-- Writes down what was heard of other nodes; never over this node's own row.  PostgreSQL 15+.
-- $1 a JSON array with one object a node, keys as the columns below.
insert into steep_repl.nodes as n
       (node_id, is_hearsay, init_state, init_source_node, op_id, health, health_reason, last_seen, agent_version,
        postgres_version, liveness, address, postgres_address, generation, percent, eta_seconds, lag_bytes, changed_at)
select t.node_id, true, t.init_state, t.init_source_node, t.op_id, t.health, t.health_reason, t.last_seen,
       t.agent_version, t.postgres_version, t.liveness, t.address, t.postgres_address, t.generation, t.percent,
       t.eta_seconds, t.lag_bytes, t.changed_at
  from pg_catalog.jsonb_to_recordset($1::jsonb)
       as t (node_id text, init_state text, init_source_node text, op_id uuid, health text, health_reason text,
             last_seen timestamptz, agent_version text, postgres_version text, liveness text, address text,
             postgres_address text, generation bigint, percent real, eta_seconds bigint, lag_bytes bigint,
             changed_at timestamptz)
    on conflict (node_id) do update
   set init_state       = coalesce(excluded.init_state, n.init_state),
       init_source_node = excluded.init_source_node,
       op_id            = excluded.op_id,
       health           = excluded.health,
       health_reason    = excluded.health_reason,
       last_seen        = coalesce(excluded.last_seen, n.last_seen),
       agent_version    = excluded.agent_version,
       postgres_version = excluded.postgres_version,
       liveness         = excluded.liveness,
       address          = excluded.address,
       postgres_address = excluded.postgres_address,
       generation       = excluded.generation,
       percent          = excluded.percent,
       eta_seconds      = excluded.eta_seconds,
       lag_bytes        = excluded.lag_bytes,
       changed_at       = excluded.changed_at
 where n.is_hearsay;
