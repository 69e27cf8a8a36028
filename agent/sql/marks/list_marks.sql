-- All marks this database holds, in one text.  PostgreSQL 15+; the table must exist.
-- No parameters.
select coalesce(pg_catalog.string_agg(m.prepare_id || ' of ' || m.node_id, ', ' order by m.prepare_id), '') as marks
  from steep_mark.prepared m;
