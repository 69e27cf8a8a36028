-- Says of this node's own row what the others' rows say too.  PostgreSQL 15+.
-- $1 a JSON object, keys as the columns below.
update steep_repl.nodes n
   set address          = t.address,
       postgres_address = t.postgres_address,
       postgres_version = coalesce(nullif(t.postgres_version, ''), n.postgres_version),
       generation       = t.generation,
       percent          = t.percent,
       eta_seconds      = t.eta_seconds,
       lag_bytes        = t.lag_bytes,
       changed_at       = t.changed_at
  from pg_catalog.jsonb_to_record($1::jsonb)
       as t (node_id text, address text, postgres_address text, postgres_version text, generation bigint, percent real,
             eta_seconds bigint, lag_bytes bigint, changed_at timestamptz)
 where n.node_id = t.node_id
   and not n.is_hearsay;
