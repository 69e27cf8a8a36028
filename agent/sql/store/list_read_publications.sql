-- Publications that operations made, or found, for a slot that is still written down: somebody reads it, or may.
-- No parameters.  PostgreSQL 15+.
select distinct p.name                         as name
  from steep_repl.intents p
  join steep_repl.intents s on s.op_id = p.op_id
 where p.kind = 'publication'
   and p.state <> 'undone'
   and s.kind = 'slot'
   and s.state <> 'undone'
 order by p.name;
