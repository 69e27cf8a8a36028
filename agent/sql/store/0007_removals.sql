-- Nodes that were taken out of replication, and who still has to hear of it.  PostgreSQL 15+.
create table steep_repl.removals (
    op_id       uuid         not null primary key,
    node_id     text         not null,
    removed_by  text         not null,
    asked_at    timestamptz  not null,
    heard_at    timestamptz  not null default pg_catalog.clock_timestamp(),
    done_at     timestamptz,
    pending     text[]       not null,
    signed      bytea        not null
);
comment on table steep_repl.removals is
    'Nodes that were removed, as far as this node has heard; rows stay, so that none is done twice.';
comment on column steep_repl.removals.op_id is
    'The operation that removed the node; it ran on the node''s own agent, or on another one where that could not be reached.';
comment on column steep_repl.removals.node_id is
    'The node removed; it may be this one.';
comment on column steep_repl.removals.asked_at is
    'When the removal was asked for: what was made later is not taken away.';
comment on column steep_repl.removals.done_at is
    'When this node had taken away what it had with the removed one; null: it has not yet, and tries again.';
comment on column steep_repl.removals.pending is
    'Nodes that have not confirmed it yet, as far as this one knows; it tells them again and again.';
comment on column steep_repl.removals.signed is
    'What an operator signed to ask for it (a SignedIntent); shown to whoever is told.';
create index removals_unfinished
    on steep_repl.removals (node_id)
    where done_at is null or pending <> '{}';

insert into steep_repl.legal_moves (subject, from_state, to_state)
values ('node', 'synchronized', 'uninitialized'),
       ('node', 'diverged',     'uninitialized');

comment on column steep_repl.operations.kind is
    'What it does: init or remove.';
comment on column steep_repl.intents.kind is
    'slot, publication, subscription, pause, origin, schema, objects, rows or peer_session.';
