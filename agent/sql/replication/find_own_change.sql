-- The first change a slot has to send that was made on this server itself; it stays in the slot.  PostgreSQL 16+.
-- $1 slot; $2 publication.
select c.lsn::text as lsn
  from pg_catalog.pg_logical_slot_peek_binary_changes(
           $1::text::name, null, 1,
           'proto_version', '1',
           'publication_names', pg_catalog.quote_ident($2::text),
           'origin', 'none') as c
 limit 1;
