-- What this node is prepared for and has not ended, oldest first.  PostgreSQL 15+.
-- No parameters.
select p.op_id          as op_id,
       p.purpose        as purpose,
       p.target_node    as target_node,
       p.slot_name      as slot_name,
       p.publication    as publication,
       p.selection      as selection,
       p.lsn            as lsn,
       p.snapshot       as snapshot,
       p.prepared_by    as prepared_by,
       p.prepared_at    as prepared_at,
       p.expires_at     as expires_at,
       p.warned_at      as warned_at,
       p.taken_by       as taken_by
  from steep_repl.preparations p
 where p.ended_at is null
 order by p.prepared_at;
