-- Tables a publication names, partitioned tables as themselves.
-- $1 the publication.  PostgreSQL 15+.
select n.nspname::text                         as schema_name,
       c.relname::text                         as table_name,
       c.relkind = 'p'                         as is_partitioned
  from pg_catalog.pg_publication        p
  join pg_catalog.pg_publication_rel    r on r.prpubid = p.oid
  join pg_catalog.pg_class              c on c.oid = r.prrelid
  join pg_catalog.pg_namespace          n on n.oid = c.relnamespace
 where p.pubname = $1::text
 order by n.nspname, c.relname;
