-- The migrations this schema has seen, in order.  PostgreSQL 15+.
-- No parameters.
select m.version    as version,
       m.name       as name,
       m.checksum   as checksum
  from steep_repl.migrations m
 order by m.version;
