-- One removal.
-- $1 the operation.  PostgreSQL 15+.
select r.op_id                 as op_id,
       r.node_id               as node_id,
       r.removed_by            as removed_by,
       r.asked_at              as asked_at,
       r.done_at is not null   as is_done,
       r.heard_at              as heard_at,
       r.pending               as pending,
       r.signed                as signed
  from steep_repl.removals r
 where r.op_id = $1::uuid;
