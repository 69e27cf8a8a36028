-- The oids of tables given by name; names nobody has are left out.
-- $1 schemas, $2 tables, pairwise.  PostgreSQL 15+.
select c.oid as oid
  from unnest($1::text[], $2::text[]) with ordinality w (schema_name, table_name, at)
  join pg_catalog.pg_namespace n on n.nspname = w.schema_name
  join pg_catalog.pg_class     c on c.relnamespace = n.oid
                                and c.relname = w.table_name
 where c.relkind in ('r', 'p', 'f')
 order by w.at;
