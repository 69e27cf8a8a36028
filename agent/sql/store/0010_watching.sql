-- What made a node diverge, and which slots no longer carry all that was written since.  PostgreSQL 15+.
insert into steep_repl.legal_moves (subject, from_state, to_state)
values ('node', 'diverged', 'synchronized');

create table steep_repl.divergences (
    id          bigint      generated always as identity primary key,
    noticed_at  timestamptz not null default pg_catalog.clock_timestamp(),
    ended_at    timestamptz,
    failure     jsonb       not null
);
comment on table steep_repl.divergences is
    'Each time replication to this node was found broken: the agent made the node diverged for it.';
comment on column steep_repl.divergences.ended_at is
    'When it was whole again, or the node was initialized anew or removed; null: it is diverged for this still.';
comment on column steep_repl.divergences.failure is
    'Code, message, causes and hint, as last seen.';
create unique index divergences_one_at_a_time
    on steep_repl.divergences ((true))
    where ended_at is null;

create table steep_repl.lost_slots (
    source_node  text        not null,
    slot_name    text        not null,
    target_node  text        not null,
    reason       text        not null,
    lost_at      timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (source_node, slot_name)
);
comment on table steep_repl.lost_slots is
    'Slots of this node, or read by its subscriptions, that do not carry all that was written since: nothing makes them whole again.';
comment on column steep_repl.lost_slots.source_node is
    'The node that had the slot.';
comment on column steep_repl.lost_slots.target_node is
    'The node it was kept for; empty: not known.';
comment on column steep_repl.lost_slots.reason is
    'What became of it, in a few words.';
