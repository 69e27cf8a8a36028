-- Whether a table has a constraint, whoever made it.  $1 schema, $2 table, $3 constraint.  PostgreSQL 15+.
select exists (select
                 from pg_catalog.pg_constraint k
                 join pg_catalog.pg_class     c on c.oid = k.conrelid
                 join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                where n.nspname = $1::text
                  and c.relname = $2::text
                  and k.conname = $3::text)  as found;
