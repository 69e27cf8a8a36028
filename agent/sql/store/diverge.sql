-- Writes down what this node is diverged for: what was noticed first keeps its moment, what is told of it may change.
-- $1 the failure.  PostgreSQL 15+.
insert into steep_repl.divergences (failure)
values ($1::jsonb)
on conflict ((true)) where ended_at is null
do update set failure = excluded.failure;
