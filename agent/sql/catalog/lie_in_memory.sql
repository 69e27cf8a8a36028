-- Whether tables, together, are no larger than what PostgreSQL takes the operating system to keep of its files.
-- $1 schemas, $2 tables, pairwise.  PostgreSQL 15+.
select coalesce(pg_catalog.sum(pg_catalog.pg_table_size(c.oid)), 0)
       <= pg_catalog.pg_size_bytes(pg_catalog.current_setting('effective_cache_size')) as do_so
  from unnest($1::text[], $2::text[]) w (schema_name, table_name)
  join pg_catalog.pg_namespace n on n.nspname = w.schema_name
  join pg_catalog.pg_class     c on c.relnamespace = n.oid
                                and c.relname = w.table_name;
