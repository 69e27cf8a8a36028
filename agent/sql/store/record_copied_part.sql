-- Remembers a part that has landed, in the transaction that loaded its rows.  PostgreSQL 15+.
-- $1 operation; $2 schema; $3 table; $4 part; $5 rows; $6 bytes; $7 hash.
insert into steep_repl.copied_parts (op_id, table_schema, table_name, part, row_count, byte_count, hash)
values ($1::uuid, $2::text, $3::text, $4::integer, $5::bigint, $6::bigint, $7::bigint);
