-- Schemas of the users' own.
-- No parameters.  PostgreSQL 15+.
select n.oid               as oid,
       n.nspname::text     as name
  from pg_catalog.pg_namespace n
 where n.nspname not in ('pg_catalog', 'information_schema', 'steep_repl', 'steep_mark')
   and n.nspname !~ '^pg_(toast|temp)'
 order by n.nspname;
