-- What this node is diverged for.
-- No parameters.  PostgreSQL 15+.
select d.failure                               as failure
  from steep_repl.divergences d
 where d.ended_at is null;
