-- What was taken over from a physical copy.  PostgreSQL 15+; the table must exist.
-- $1 the preparation's short id.
select a.node_id       as node_id,
       a.timeline      as timeline,
       a.lsn           as lsn,
       a.wal_sha256    as wal_sha256
  from steep_mark.adopted a
 where a.prepare_id = $1::text;
