-- The mark of a preparation, as this database holds it.  PostgreSQL 15+; the table must exist.
-- $1 its short id.
select m.node_id              as node_id,
       m.system_identifier    as system_identifier,
       m.timeline             as timeline,
       m.is_sealed            as is_sealed
  from steep_mark.prepared m
 where m.prepare_id = $1::text;
