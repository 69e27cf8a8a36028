-- Checks one page of the audit chain.  PostgreSQL 15+.
-- $1 id of the last row checked before, 0 for none; $2 its hash, 32 zero bytes for none; $3 rows at most.
with page as (
    select a.id                                                            as id,
           a.prev_hash                                                     as prev_hash,
           a.hash                                                          as hash,
           steep_repl.audit_hash(a)                                        as hash_due,
           pg_catalog.lag(a.id, 1, $1::bigint) over (order by a.id)        as id_before,
           pg_catalog.lag(a.hash, 1, $2::bytea) over (order by a.id)       as hash_before
      from steep_repl.audit_log a
     where a.id > $1::bigint
     order by a.id
     limit $3::bigint
)
select pg_catalog.min(p.id) filter (where p.id <> p.id_before + 1
                                       or p.prev_hash <> p.hash_before
                                       or p.hash <> p.hash_due)                  as broken,
       pg_catalog.max(p.id)                                                      as last_id,
       (pg_catalog.array_agg(p.hash order by p.id desc))[1]                      as last_hash
  from page p;
