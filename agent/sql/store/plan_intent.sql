-- Writes down something that is about to be made, unless it is written down already: then the row tells how it was
-- before the first try. Things without a name of their own get a row each time.  PostgreSQL 15+.
-- $1 operation; $2 step; $3 kind; $4 name; $5 all that is needed to undo it.
with known as (
    select i.id
      from steep_repl.intents i
     where i.op_id = $1::uuid
       and i.kind = $3::text
       and i.name = $4::text
       and i.kind in (
         'slot', 'publication', 'subscription', 'pause', 'origin', 'session', 'peer_session', 'sync_slots', 'mark'
       )
       and i.state in ('planned', 'live')
     order by i.id
     limit 1
), written as (
    insert into steep_repl.intents (op_id, step, kind, name, detail)
    select $1::uuid, $2::text, $3::text, $4::text, $5::jsonb
     where not exists (select from known)
    returning id
)
select k.id as id
  from known k
 union all
select w.id as id
  from written w;
