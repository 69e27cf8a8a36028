-- When the thing of this kind and name that is kept was last made; null: none is.  PostgreSQL 15+.
-- $1 kind; $2 name.
select pg_catalog.max(i.made_at) as made_at
  from steep_repl.intents i
 where i.kind = $1::text
   and i.name = $2::text
   and i.state = 'kept';
