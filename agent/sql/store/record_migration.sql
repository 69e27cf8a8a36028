-- Remembers that a migration was applied, in its own transaction.  PostgreSQL 15+.
-- $1 version; $2 name; $3 checksum.
insert into steep_repl.migrations (version, name, checksum)
values ($1::integer, $2::text, $3::text);
