-- The node a slot was made for, and the publications made with it, unless it was undone.
-- $1 the slot.  PostgreSQL 15+.
select i.detail ->> 'peer'                     as peer,
       array(select p.name
               from steep_repl.intents p
              where p.op_id = i.op_id
                and p.kind = 'publication'
                and p.state <> 'undone'
              order by p.id)                   as publications
  from steep_repl.intents i
 where i.kind = 'slot'
   and i.name = $1::text
   and i.state <> 'undone'
 order by i.id desc
 limit 1;
