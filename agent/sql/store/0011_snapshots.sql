-- Snapshots in files: what each keeps on the server, and when that ends.  PostgreSQL 15+.
alter table steep_repl.snapshots
    add column slot_name         text,
    add column publication_name  text,
    add column warned_at         timestamptz;
comment on table steep_repl.snapshots is
    'Snapshots of this node''s database that its agent wrote into files.';
comment on column steep_repl.snapshots.snapshot_id is
    'The operation that made it; people know it by the end of that: snap_0192f3ac7d21.';
comment on column steep_repl.snapshots.slot_name is
    'The slot that keeps what was written since; null: not made yet.';
comment on column steep_repl.snapshots.publication_name is
    'The publication that holds its tables; null: not made yet.';
comment on column steep_repl.snapshots.warned_at is
    'When it was told that it expires soon; null: it was not.';

comment on column steep_repl.operations.kind is
    'What it does: init, reinit, remove or snapshot.';
comment on column steep_repl.intents.kind is
    'slot, publication, subscription, pause, origin, schema, objects, rows, detour, staged, fence, directory or peer_session.';
