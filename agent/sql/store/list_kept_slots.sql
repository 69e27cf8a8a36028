-- Slots that operations made on this node, and neither undid nor gave up.
-- No parameters.  PostgreSQL 15+.
select i.name                                  as name,
       coalesce(i.detail ->> 'peer', '')       as peer,
       i.op_id                                 as op_id,
       i.state = 'kept'                        as is_kept
  from steep_repl.intents i
 where i.kind = 'slot'
   and i.state <> 'undone'
 order by i.id;
