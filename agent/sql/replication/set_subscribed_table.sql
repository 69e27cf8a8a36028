-- Tells a subscription that does not run where one of its tables stands: what was committed before is in its rows already,
-- and is not applied to it. Its worker makes the table like all others once it has come that far.
-- Superusers only.  PostgreSQL 15+.
-- $1 the subscription; $2 schema; $3 table; $4 where the table stands.
update pg_catalog.pg_subscription_rel as r
   set srsubstate = 's',
       srsublsn   = $4::pg_lsn
  from pg_catalog.pg_subscription s,
       pg_catalog.pg_class c,
       pg_catalog.pg_namespace n
 where s.subname = $1::text
   and s.subdbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
   and not s.subenabled
   and n.nspname = $2::text
   and c.relname = $3::text
   and c.relnamespace = n.oid
   and r.srsubid = s.oid
   and r.srrelid = c.oid;
