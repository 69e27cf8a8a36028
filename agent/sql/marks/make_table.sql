-- The table of marks: in a schema of its own, so that dumps hold it although they leave out steep_repl. is_sealed is written
-- after the snapshot of the preparation, so that a dump of that snapshot does not show it; timeline is the server's when it
-- was prepared, which a physical copy leaves.  PostgreSQL 15+.
-- No parameters.
create table if not exists steep_mark.prepared (
    prepare_id         text    primary key,
    node_id            text    not null,
    system_identifier  text    not null,
    timeline           integer not null,
    is_sealed          boolean not null default false
);
