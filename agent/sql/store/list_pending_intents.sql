-- What an operation has made, or may have, and not undone; newest first.  PostgreSQL 15+.
-- $1 operation.
select i.id        as id,
       i.op_id     as op_id,
       i.step      as step,
       i.kind      as kind,
       i.name      as name,
       i.detail    as detail,
       i.state     as state,
       i.made_at   as made_at
  from steep_repl.intents i
 where i.op_id = $1::uuid
   and i.state in ('planned', 'live')
 order by i.id desc;
