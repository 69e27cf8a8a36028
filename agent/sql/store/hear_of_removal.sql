-- Writes down that a node was removed; where that is known, only whom the caller has not told yet is left.
-- $1 operation; $2 the node; $3 who asked for it; $4 when; $5 who has to hear of it; $6 what was signed.  PostgreSQL 15+.
insert into steep_repl.removals as r (op_id, node_id, removed_by, asked_at, pending, signed)
values ($1::uuid, $2::text, $3::text, $4::timestamptz, $5::text[], $6::bytea)
    on conflict (op_id) do update
   set pending = array(select p.node
                         from pg_catalog.unnest(r.pending) p (node)
                        where p.node = any (excluded.pending));
