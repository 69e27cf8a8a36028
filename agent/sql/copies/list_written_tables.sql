-- Tables that were written to since the server's statistics began, which for a copy is its first start.  PostgreSQL 15+.
-- $1 only these, by their oids.
select pg_catalog.format('%I.%I', t.schemaname, t.relname)     as name
  from pg_catalog.pg_stat_all_tables t
 where t.relid = any ($1::oid[])
   and t.n_tup_ins + t.n_tup_upd + t.n_tup_del > 0
 order by 1;
