-- The table of what was taken over from a physical copy: in it alone, and until the node is completed.  PostgreSQL 15+.
-- No parameters.
create table if not exists steep_mark.adopted (
    prepare_id         text    primary key,
    node_id            text    not null,
    timeline           integer not null,
    lsn                pg_lsn  not null,
    wal_sha256         bytea   not null
);
