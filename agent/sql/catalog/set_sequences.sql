-- Sets many sequences at once.
-- $1 their quoted names, $2 values, $3 whether that value has been handed out, pairwise.  PostgreSQL 15+.
select pg_catalog.setval(w.name::regclass, w.value, w.is_called)
  from unnest($1::text[], $2::bigint[], $3::boolean[]) w (name, value, is_called);
