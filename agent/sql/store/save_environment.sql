-- Writes down what another node told of its database, and when; never over this node's own.  PostgreSQL 15+.
-- $1 the node; $2 fingerprint; $3 definition; $4 digest; $5 tables; $6 whether it saw everything; $7 when it looked.
insert into steep_repl.schema_environments as e
       (node_id, fingerprint, definition, digest, tables, is_complete, captured_at)
select $1::text, $2::text, $3::jsonb, $4::text, $5::integer, $6::boolean, $7::timestamptz
 where not exists (select
                     from steep_repl.identity as i
                    where i.node_id = $1::text)
    on conflict (node_id) do update
   set fingerprint = excluded.fingerprint,
       definition  = excluded.definition,
       digest      = excluded.digest,
       tables      = excluded.tables,
       is_complete = excluded.is_complete,
       captured_at = excluded.captured_at;
