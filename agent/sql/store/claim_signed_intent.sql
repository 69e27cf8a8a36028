-- Writes down an order that is about to be acted on; returns nothing when its id was used before.  PostgreSQL 15+.
-- $1 its id; $2 action; $3 signer; $4 target; $5 source; $6 operation it is about; $7 bytes; $8 signature; $9 scheme;
-- $10 certificates.
insert into steep_repl.signed_intents (op_id, action, signer, target, source, about, intent, signature, scheme, chain)
values ($1::uuid, $2::text, $3::text, $4::text, $5::text, $6::uuid, $7::bytea, $8::bytea, $9::integer, $10::bytea[])
    on conflict do nothing
returning op_id;
