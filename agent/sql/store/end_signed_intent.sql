-- Nothing more may begin by an order.  PostgreSQL 15+.  $1 its id.
update steep_repl.signed_intents
   set ended_at = pg_catalog.clock_timestamp()
 where op_id = $1::uuid
   and ended_at is null;
