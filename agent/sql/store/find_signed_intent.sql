-- An order that was acted on.  PostgreSQL 15+.  $1 its id.
select s.target,
       s.about,
       s.intent,
       s.signature,
       s.scheme,
       s.chain,
       s.ended_at is not null as has_ended
  from steep_repl.signed_intents s
 where s.op_id = $1::uuid;
