-- Operations, of this node or another, that have made something here and neither undone nor kept it.
-- No parameters.  PostgreSQL 15+.
select i.op_id as op_id
  from steep_repl.intents i
 where i.state in ('planned', 'live')
 group by i.op_id
 order by pg_catalog.min(i.id);
