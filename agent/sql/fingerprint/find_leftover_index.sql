-- Whether an index is what a build that failed has left: not valid, and nobody is at work on it.  $1 schema, $2 index.
-- PostgreSQL 15+.
select exists (select
                 from pg_catalog.pg_index     i
                 join pg_catalog.pg_class     c on c.oid = i.indexrelid
                 join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                where n.nspname = $1::text
                  and c.relname = $2::text
                  and not i.indisvalid
                  and not exists (select
                                    from pg_catalog.pg_stat_progress_create_index p
                                   where p.index_relid = i.indexrelid))  as found;
