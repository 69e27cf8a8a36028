-- Captures a page of this node's tables, those whose oids come next.  PostgreSQL 15+.
-- $1 the node; $2 the last oid of the page before (0: none); $3 tables a page.
select p.last_relid  as last_relid,
       p.tables      as tables,
       p.changed     as changed
  from steep_repl.capture_page($1::text, $2::oid, $3::integer) as p;
