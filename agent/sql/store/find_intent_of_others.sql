-- Whether another operation relies on something of this kind and name: it made it, or found it and said so.
-- $1 the operation that does not count; $2 kind; $3 name.  PostgreSQL 15+.
select exists (select
                 from steep_repl.intents i
                where i.op_id <> $1::uuid
                  and i.kind = $2::text
                  and i.name = $3::text
                  and i.state <> 'undone') as is_used;
