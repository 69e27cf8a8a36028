-- The other nodes this one has heard of, to find them again after a start.  PostgreSQL 15+.
select n.node_id     as node_id,
       n.address     as address,
       n.generation  as generation
  from steep_repl.nodes n
 where n.is_hearsay
   and n.address <> ''
 order by n.node_id;
