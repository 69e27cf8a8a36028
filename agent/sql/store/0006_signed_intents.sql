-- What operators have signed and this node has acted on.  PostgreSQL 15+.
create table steep_repl.signed_intents (
    op_id      uuid        not null primary key,
    action     text        not null,
    signer     text        not null,
    target     text        not null,
    source     text,
    about      uuid,
    intent     bytea       not null,
    signature  bytea       not null,
    scheme     integer     not null,
    chain      bytea[]     not null,
    used_at    timestamptz not null default pg_catalog.clock_timestamp(),
    ended_at   timestamptz
);
comment on table steep_repl.signed_intents is
    'Every order of an operator that this node has acted on, as it was signed: proof of who wanted what, and no second use.';
comment on column steep_repl.signed_intents.op_id is
    'The order''s own id, which is also that of an operation it begins.';
comment on column steep_repl.signed_intents.action is
    'What was ordered: node.start.';
comment on column steep_repl.signed_intents.signer is
    'Who signed, as the URI in their certificate.';
comment on column steep_repl.signed_intents.target is
    'The node whose agent is to act.';
comment on column steep_repl.signed_intents.source is
    'The node whose rows the target may read; null: none.';
comment on column steep_repl.signed_intents.about is
    'The operation that was begun or cancelled by it; null: it was about none.';
comment on column steep_repl.signed_intents.intent is
    'The bytes that were signed: an encoded steep.v1.Intent.';
comment on column steep_repl.signed_intents.scheme is
    'The signature''s scheme, by its number in TLS 1.3.';
comment on column steep_repl.signed_intents.chain is
    'DER: the signer''s certificate, then those that lead to the mesh''s root.';
comment on column steep_repl.signed_intents.ended_at is
    'Nothing more may begin by it from then on; null: the operation it began has not been closed.';

create trigger kept
    before delete or truncate or update of op_id, action, signer, target, source, about, intent, signature, scheme, chain,
    used_at on steep_repl.signed_intents
    for each statement
    execute function steep_repl.refuse_rewriting();
alter table steep_repl.signed_intents enable always trigger kept;
