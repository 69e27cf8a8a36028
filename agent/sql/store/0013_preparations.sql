-- Backups made by hand: what a node keeps for them, and until when.  PostgreSQL 15+.
create table steep_repl.preparations (
    op_id          uuid        primary key,
    purpose        text        not null check (purpose in ('pg_dump', 'pg_basebackup', 'storage-snapshot')),
    target_node    text        not null,
    slot_name      text        not null,
    publication    text        not null,
    selection      bytea       not null,
    lsn            pg_lsn,
    snapshot       text        not null default '',
    prepared_by    text        not null,
    prepared_at    timestamptz not null default pg_catalog.clock_timestamp(),
    expires_at     timestamptz not null,
    warned_at      timestamptz,
    taken_by       uuid,
    ended_at       timestamptz,
    end_reason     text
);
comment on table steep_repl.preparations is
    'What this node was prepared for by steepctl node prepare: each keeps a slot until a node is completed from it, or it expires.';
comment on column steep_repl.preparations.target_node is
    'The node that is to be completed from it; empty: not said.';
comment on column steep_repl.preparations.selection is
    'Which tables, as a message of the protocol.';
comment on column steep_repl.preparations.lsn is
    'Where the slot begins; null: it is not made yet.';
comment on column steep_repl.preparations.snapshot is
    'The exported snapshot that is held for it; empty: none is, or not any more.';
comment on column steep_repl.preparations.warned_at is
    'When it was told that it expires soon.';
comment on column steep_repl.preparations.taken_by is
    'The operation that last began to complete a node from it.';
create unique index preparations_by_slot
    on steep_repl.preparations (slot_name)
    where ended_at is null;
