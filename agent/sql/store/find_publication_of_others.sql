-- What other operations have to do with a publication: whether one is under way with it or has a slot, still written down, that is
-- read through it; and whether one has kept it.
-- $1 the operation that does not count; $2 the publication.  PostgreSQL 15+.
select coalesce(bool_or(p.state <> 'kept'
                        or exists (select
                                     from steep_repl.intents s
                                    where s.op_id = p.op_id
                                      and s.kind = 'slot'
                                      and s.state <> 'undone')), false) as is_read,
       coalesce(bool_or(p.state = 'kept'), false)                      as was_kept
  from steep_repl.intents p
 where p.op_id <> $1::uuid
   and p.kind = 'publication'
   and p.name = $2::text
   and p.state <> 'undone';
