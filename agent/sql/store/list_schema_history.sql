-- How this node's tables changed, newest first.  PostgreSQL 15+.
-- $1, $2 schema and name of one table (null: all); $3 only what came before this id (null: all); $4 rows at most.
select h.id                  as id,
       h.table_schema        as table_schema,
       h.table_name          as table_name,
       h.change              as change,
       h.fingerprint         as fingerprint,
       h.shape               as shape,
       h.column_definitions  as column_definitions,
       h.shape_definition    as shape_definition,
       h.noticed_at          as noticed_at
  from steep_repl.schema_history as h
 where ($1::text is null or h.table_schema = $1::text)
   and ($2::text is null or h.table_name = $2::text)
   and ($3::bigint is null or h.id < $3::bigint)
 order by h.id desc
 limit $4::bigint;
