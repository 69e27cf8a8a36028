-- The databases of all nodes whose schema is known.  PostgreSQL 15+.
-- No parameters.
select e.node_id      as node_id,
       e.fingerprint  as fingerprint,
       e.definition   as definition,
       e.digest       as digest,
       e.tables       as tables,
       e.is_complete  as is_complete,
       e.captured_at  as captured_at
  from steep_repl.schema_environments as e
 order by e.node_id;
