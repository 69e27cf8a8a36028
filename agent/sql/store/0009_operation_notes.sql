-- What operations have learned and must know to go on after their agent has died.  PostgreSQL 15+.
create table steep_repl.operation_notes (
    op_id       uuid        not null references steep_repl.operations (op_id) on delete cascade,
    name        text        not null,
    body        bytea       not null,
    written_at  timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (op_id, name)
);
comment on table steep_repl.operation_notes is
    'What an operation that has not ended knows, so that it can go on should its agent die; gone when it has ended.';
comment on column steep_repl.operation_notes.name is
    'What it is: facts, existing, session, joined/NODE, counts, indexes.begun/OID, indexes.built/OID.';
comment on column steep_repl.operation_notes.body is
    'An encoded message of steep.v1; empty where the name says it all.';
