-- What became of slots that a node had and that nothing makes whole again.
-- $1 the node.  PostgreSQL 15+.
select l.slot_name                             as name,
       l.target_node                           as target,
       l.reason                                as reason
  from steep_repl.lost_slots l
 where l.source_node = $1::text;
