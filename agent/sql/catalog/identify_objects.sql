-- What objects are and how SQL names them; objects that are gone are left out.
-- $1 their catalogs' oids, $2 their own oids, pairwise.  PostgreSQL 15+.
select w.class_id          as class_id,
       w.object_id         as object_id,
       i.type              as kind,
       i.identity          as identity
  from unnest($1::oid[], $2::oid[]) with ordinality w (class_id, object_id, at)
 cross join lateral pg_catalog.pg_identify_object(w.class_id, w.object_id, 0) i
 where i.identity is not null
 order by w.at;
