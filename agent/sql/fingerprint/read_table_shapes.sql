-- Tables as they are now, in the session's own transaction, with their documents and fingerprints.
-- $1 schemas and $2 names, pairwise; null: all.  PostgreSQL 15+.
select f.table_schema         as table_schema,
       f.table_name           as table_name,
       f.fingerprint          as fingerprint,
       f.fingerprint_sorted   as fingerprint_sorted,
       f.shape                as shape,
       f.column_definitions   as column_definitions,
       f.shape_definition     as shape_definition
  from steep_repl.fingerprint_tables(
           array(select u.relid
                   from steep_repl.user_tables u
                  where $1::text[] is null
                     or exists (select
                                  from unnest($1::text[], $2::text[]) as wanted (table_schema, table_name)
                                 where wanted.table_schema = u.table_schema
                                   and wanted.table_name = u.table_name))) f;
