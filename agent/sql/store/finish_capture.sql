-- Ends a capture: tables missed or dropped, the environment, the digest.  PostgreSQL 15+.
-- $1 the node.
select f.changed      as changed,
       f.digest       as digest,
       f.is_complete  as is_complete
  from steep_repl.finish_capture($1::text) as f;
