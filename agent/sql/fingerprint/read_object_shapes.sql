-- Types and sequences as they are now, with their documents and fingerprints.  PostgreSQL 15+.
select o.kind            as kind,
       o.object_schema   as object_schema,
       o.object_name     as object_name,
       o.fingerprint     as fingerprint,
       o.definition      as definition
  from steep_repl.canon_objects() o;
