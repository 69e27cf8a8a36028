-- The parts an operation has copied.  PostgreSQL 15+.
-- $1 operation.
select p.op_id          as op_id,
       p.table_schema   as table_schema,
       p.table_name     as table_name,
       p.part           as part,
       p.row_count      as row_count,
       p.byte_count     as byte_count,
       p.hash           as hash
  from steep_repl.copied_parts p
 where p.op_id = $1::uuid
 order by p.table_schema, p.table_name, p.part;
