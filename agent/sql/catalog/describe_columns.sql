-- Columns of tables, in their order. A type is binary safe when it is built in (or an array of such a type) and its
-- send and receive functions speak one format on 15 to 18: types that carry oids or locales in it are not on the list,
-- and neither is tsquery, which cannot receive an empty query.
-- $1 the tables' oids.  PostgreSQL 15+.
select a.attrelid                                                        as table_oid,
       a.attname::text                                                   as name,
       pg_catalog.format_type(a.atttypid, a.atttypmod)                   as type_name,
       a.attnotnull                                                      as not_null,
       a.attgenerated::text                                              as generated,
       a.attidentity::text                                               as identity,
       a.atthasdef                                                       as has_default,
       t.oid < 16384
         and coalesce(e.typname, t.typname) in
             ('bool', 'bytea', 'char', 'int2', 'int4', 'int8', 'float4', 'float8', 'numeric', 'text', 'varchar',
              'bpchar', 'name', 'date', 'time', 'timetz', 'timestamp', 'timestamptz', 'interval', 'uuid', 'json',
              'jsonb', 'jsonpath', 'inet', 'cidr', 'macaddr', 'macaddr8', 'bit', 'varbit', 'point', 'line', 'lseg',
              'box', 'path', 'polygon', 'circle', 'tsvector', 'pg_lsn', 'int4range', 'int8range',
              'numrange', 'daterange', 'tsrange', 'tstzrange', 'int4multirange', 'int8multirange', 'nummultirange',
              'datemultirange', 'tsmultirange', 'tstzmultirange')        as binary_safe
  from pg_catalog.pg_attribute   a
  join pg_catalog.pg_type        t on t.oid = a.atttypid
  left join pg_catalog.pg_type   e on e.typarray = t.oid
 where a.attrelid = any ($1::oid[])
   and a.attnum > 0
   and not a.attisdropped
 order by a.attrelid, a.attnum;
