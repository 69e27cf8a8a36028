-- Makes this node's own row, or says which versions it runs now.  PostgreSQL 15+.
-- $1 node id; $2 agent version; $3 PostgreSQL version.
insert into steep_repl.nodes as n (node_id, agent_version, postgres_version)
values ($1::text, $2::text, $3::text)
    on conflict (node_id) do update
   set agent_version    = excluded.agent_version,
       postgres_version = excluded.postgres_version,
       last_seen        = pg_catalog.now();
