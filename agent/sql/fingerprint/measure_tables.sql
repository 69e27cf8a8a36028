-- How many bytes the rows of tables take, those of their partitions and descendants included.
-- $1 schemas and $2 names, pairwise.  PostgreSQL 15+.
with recursive below as (
    select c.oid            as root,
           c.oid            as relid
      from unnest($1::text[], $2::text[]) as wanted (table_schema, table_name)
      join pg_catalog.pg_namespace n on n.nspname = wanted.table_schema
      join pg_catalog.pg_class     c on c.relnamespace = n.oid and c.relname = wanted.table_name
     union
    select b.root,
           i.inhrelid
      from below b
      join pg_catalog.pg_inherits i on i.inhparent = b.relid
)
select n.nspname::text                                                             as table_schema,
       c.relname::text                                                             as table_name,
       coalesce(sum(pg_catalog.pg_relation_size(b.relid)), 0)::bigint              as size_bytes
  from below b
  join pg_catalog.pg_class     c on c.oid = b.root
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 group by 1, 2;
