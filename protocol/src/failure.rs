//! An error that keeps its meaning across the wire: code, message, causes, hint, retry.
//!
//! Rooms have small error enums of their own and implement [`Explain`]; at the door their errors become a
//! [`Failure`]. Every [`Code`] has a hint, a longer explanation and an exit code; a new case is one line here.

use std::{error::Error, fmt};

use serde::{Deserialize, Serialize};

use crate::v1;

/// How steepctl ends for a family of failures; the numbers are its exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 1: anything that has no family of its own.
    General = 1,
    /// 3: schemas differ.
    Schema = 3,
    /// 4: the operation was cancelled.
    Cancelled = 4,
    /// 5: a deadline passed.
    Timeout = 5,
    /// 6: nobody could be reached.
    Connection = 6,
    /// 7: the certificate does not allow it, or was refused.
    Permission = 7,
    /// 8: a check failed; nothing was changed.
    Precondition = 8,
    /// 9: something runs already, or the state does not allow it.
    Conflict = 9,
    /// 10: checksums or counts do not agree.
    Integrity = 10,
}

macro_rules! codes {
    ($($number:literal $name:ident $family:ident $retry:literal $title:literal $hint:literal)+) => {
        /// What went wrong, as a number that stays the same for years: `STP-nnnn`.
        ///
        /// 1xxx agent, certificates and network; 2xxx what a preflight finds; 3xxx copying; 4xxx operations,
        /// states and replication; 5xxx requests.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $name = $number),+
        }

        impl Code {
            /// Every code there is, in order.
            pub const ALL: &'static [Code] = &[$(Code::$name),+];

            /// What it means, in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title),+ }
            }

            /// What to do, where the failure itself knows nothing better.
            pub fn hint(self) -> &'static str {
                match self { $(Code::$name => $hint),+ }
            }

            /// Its family, which decides steepctl's exit code.
            pub fn family(self) -> Family {
                match self { $(Code::$name => Family::$family),+ }
            }

            /// The same request may succeed later without any change.
            pub fn is_retryable(self) -> bool {
                match self { $(Code::$name => $retry),+ }
            }
        }
    };
}

codes! {
    1001 ConfigInvalid General false "the configuration is invalid" "mend the key named above, then: steep-agent config check --config FILE"
    1002 StateDirUnwritable General false "the state directory cannot be written" "create the directory of node.state_dir and give it to the agent's user"
    1003 ProtocolMismatch Connection false "two agents speak versions too far apart" "upgrade the older agent; neighbouring versions understand each other"
    1101 CertificateRefused Permission false "a certificate was refused" "steepctl pki inspect FILE shows mesh, identity and validity; both ends need certificates from the same pki directory"
    1102 IdentityMismatch Permission false "a certificate names somebody else" "give each agent the certificate issued for its own node: steepctl pki issue node NODE"
    1103 CertificateExpired Permission false "a certificate has expired or is not valid yet" "steepctl pki issue node NODE (or operator NAME) makes a new one; check the clock of the machine"
    1104 WrongMesh Permission false "a certificate belongs to another mesh" "use a certificate issued by this mesh's pki directory; steepctl pki inspect FILE shows the mesh"
    1105 KeyFileOpen General false "a private key can be read by others" "chmod 600 FILE"
    1106 CertificateUnusable General false "a certificate or key file cannot be used" "steepctl pki inspect FILE; issue it again if it is damaged"
    1107 FileExists Precondition false "a file is already there and is never overwritten" "move the old file away first, or choose another --dir"
    1108 NodeIdTaken Conflict false "two agents use one node id" "stop one of the two agents, or give it its own id, certificate and database"
    1110 CertificateRevoked Permission false "a certificate has been revoked" "steepctl pki list shows which are; steepctl pki renew NODE (or operator NAME) makes a new one"
    1111 RevocationsRefused Permission false "a revocation list was refused" "steepctl pki crl shows and exports the lists that the mesh's pki directory signed"
    1112 RevocationsOlder Conflict false "a revocation list is older than the one in force" "hand in the newest: steepctl pki crl --publish"
    1113 RevocationsOverdue Permission false "a revocation list should have been replaced long ago" "sign a fresh one and hand it in: steepctl pki crl --sign --publish; pki.crl_overdue_limit sets the limit"
    1114 CertificateExpires Precondition false "a certificate expires soon" "steepctl pki renew NODE, then put the new files in place: the agent reads them by itself"
    1115 NotIssuedHere Precondition false "the pki directory has issued no such certificate" "steepctl pki list shows what was issued; a certificate's FILE can be given instead of its name"
    1116 RotationState Conflict false "the exchange of the root is not at that step" "steepctl pki list shows which certificates stand under which root"
    1201 PeerUnreachable Connection true "an agent cannot be reached" "check that the agent runs (steep-agent run) and that its port is open for UDP and TCP"
    1202 NoPeerConfigured Connection false "no agent to ask" "give --peer HOST:PORT or set STEEPCTL_PEER"
    1203 PeerSilent Timeout true "an agent did not answer in time" "try again; steepctl status shows which nodes answer"
    1210 SeedSilent Timeout true "the agent at a seed's address did not take this one in" "see that agent's log for mesh.message_refused or STP-1108; steepctl mesh ping NODE shows whether the two reach each other"
    1211 NodeAlive Conflict false "a node that is alive cannot be forgotten" "stop its agent, or: steepctl mesh leave NODE; then forget it"
    1212 OutsideMesh Conflict false "the agent has left the mesh" "steepctl mesh join HOST:PORT with the address of any member, or start the agent again"
    1230 UdpBlocked Connection true "UDP between two agents is blocked" "open the agents' port for UDP in both directions; until then everything goes over TCP, and QUIC is tried again by itself; mesh.transport = \"tcp\" says that it is meant"
    1231 TooManyRequests Timeout true "too many requests" "ask less often, or wait for answers before asking more; deploy/README.md has the limits"
    2000 PostgresUnreachable Connection true "PostgreSQL cannot be reached" "start PostgreSQL, or correct [postgres] in agent.toml; the agent retries by itself"
    2001 VersionUnsupported Precondition false "this PostgreSQL version is not supported" "use PostgreSQL 15, 16, 17 or 18"
    2002 WalLevel Precondition false "wal_level is not logical" "alter system set wal_level = logical; then restart PostgreSQL"
    2003 NoFreeSlot Precondition false "no replication slot is free" "raise max_replication_slots and restart PostgreSQL, or drop slots nobody needs: select * from pg_replication_slots where not active"
    2004 NoFreeWalSender Precondition false "no walsender is free" "raise max_wal_senders and restart PostgreSQL"
    2005 WorkersTooFew Precondition false "too few logical replication workers" "raise max_logical_replication_workers and max_worker_processes, then restart PostgreSQL"
    2006 OriginsTooFew Precondition false "too few replication origins are free" "use a smaller --parallel, or raise max_active_replication_origins (max_replication_slots before 18)"
    2008 SlotWalLimit Precondition false "the source may discard WAL before the copy is done" "raise max_slot_wal_keep_size on the source"
    2012 SameDatabase Precondition false "source and target are the same database" "point the target's agent at a database of its own"
    2013 InRecovery Precondition false "the server is a standby" "use the primary: a standby cannot take part yet"
    2014 EncodingDiffers Precondition false "the databases have different encodings" "create the target database with the source's encoding"
    2015 TwoWayUnsupported Precondition false "PostgreSQL 15 cannot replicate both ways" "start it with --one-way, or upgrade the older server to 16 or later"
    2016 OutsideChanges Precondition false "a node also gets changes from outside the mesh, which would not reach the others" "start it with --one-way, or take that node out first: steepctl node remove NODE"
    2020 MeshIncomplete Precondition false "not every two nodes of the mesh replicate with each other" "steepctl node show NODE on both; mend the subscription that is missing or disabled, or take one of the two out: steepctl node remove NODE"
    2021 MemberUnreachable Precondition true "a node of the mesh cannot be asked" "start its agent and PostgreSQL, or take it out for good: steepctl node remove NODE --drop-slots"
    2022 MeshTablesDiffer Precondition false "the mesh replicates other tables than those selected" "select the tables the mesh replicates (--tables, --schemas, --exclude); or publish the others and refresh the subscriptions on every node"
    2023 RemovalPending Conflict true "the node was removed, and not every node has heard of it yet" "start the agent of the node named above and wait some seconds; or remove that node too"
    2101 ReplicationPrivilege Precondition false "the agent's role may not replicate" "alter role ROLE replication; (or superuser)"
    2102 SelectPrivilege Precondition false "the agent's role may not read a table" "grant select on TABLE to ROLE; and usage on its schema"
    2103 RowSecurity Precondition false "row security would hide rows" "alter role ROLE bypassrls; or leave the table out with --exclude"
    2105 SubscribePrivilege Precondition false "the agent's role may not create subscriptions" "let the agent connect as a superuser: alter role ROLE superuser, or another [postgres] user in agent.toml"
    2107 LoadPrivilege Precondition false "the agent's role may not load tables" "use a superuser for [postgres] user, or grant set on parameter session_replication_role and execute on the pg_replication_origin functions"
    2110 PublishPrivilege Precondition false "the agent's role may not publish a table" "make the role owner of the table (or superuser) and grant create on the database"
    2201 NoReplicaIdentity Precondition false "a table has no replica identity" "add a primary key, or alter table TABLE replica identity using index or full; or leave it out with --exclude"
    2202 SchemaDiffers Schema false "a table differs between source and target" "steepctl schema diff SOURCE TARGET shows how; make them alike, or start with --schema-sync auto, or drop the target's table and let Steep create it"
    2203 UnsupportedObject Precondition false "a table is of a kind that cannot be replicated" "alter table TABLE set logged for an unlogged table, or leave it out with --exclude"
    2204 ObjectExists Precondition false "the target already has an object the source's schema would create" "drop it on the target, or use an empty target database"
    2205 RoleMissing Precondition false "roles the source's schema needs are missing on the target" "create the roles on the target first: pg_dumpall --roles-only"
    2206 ReferencedTableLeftOut Precondition false "a foreign key points at a table that is not selected" "select the referenced table too, or leave the referencing one out"
    2207 NothingSelected Precondition false "no table is selected" "check --tables, --schemas and --exclude; steepctl node start --dry-run shows the plan"
    2208 TableUnknown Precondition false "a table named does not exist on the source" "check the spelling; quote names as SQL would"
    2209 LargeObjects Precondition false "the database holds large objects, which logical replication does not carry" "move them to bytea columns, or select the tables without them using --tables"
    2210 ExtensionMissing Precondition false "an extension of the source is not available on the target" "install the extension's package beside the target's PostgreSQL"
    2211 TriggerAlways Precondition false "a trigger also fires for rows that are copied or replicated" "alter table TABLE enable trigger NAME; on both nodes, unless it is meant to run on each of them"
    2220 SchemaPlanStale Schema false "the target's schema changed since the plan was made" "make the plan anew: steepctl schema plan SOURCE TARGET"
    2221 SchemaTrialFailed Schema false "a trial of the plan did not give what was planned; nothing was changed" "the message names the statement or table; mend it by hand, then: steepctl schema plan SOURCE TARGET"
    2222 SchemaLocked Schema true "a table stayed locked while its schema was to be changed" "end or wait for the transaction that holds it: select pid, query from pg_stat_activity where state <> 'idle' order by xact_start; then try again"
    2223 SchemaSyncRunning Conflict true "another schema sync runs on the node" "wait for it; steepctl op list shows what runs"
    2224 SchemaSyncStopped Schema false "a schema sync stopped before its end" "what was applied stays, and the rest can be planned: steepctl schema plan SOURCE TARGET"
    2225 SchemaUnreadable Schema false "what a node told of its schema cannot be read" "let both agents be of the same version; steepctl schema capture NODE"
    2226 SchemaUnsettled Schema false "after a schema sync the target is not what was planned" "steepctl schema diff SOURCE TARGET shows what differs; was there other DDL meanwhile?"
    2301 TargetNotEmpty Precondition false "the target is not empty" "empty the tables yourself, or start again with --force to have them emptied"
    2303 LongTransaction Precondition true "a long transaction keeps the slot from being made" "wait for it or end it: select pg_terminate_backend(PID)"
    2304 PreparedTransaction Precondition true "a prepared transaction keeps the slot from being made" "commit prepared or rollback prepared it first"
    2401 DiskTooSmall Precondition false "the target's disk is too small, or a disk was full" "free space or enlarge the disk; 1.3 times the source's size is needed"
    2501 PgDumpMissing Precondition false "pg_dump or pg_restore cannot be used" "install the PostgreSQL client programs of the server's major version or later, and set postgres.bin_dir"
    3001 ChunkDamaged Integrity true "a block of copied data arrived damaged" "start the operation again; if it repeats, check memory and network of both machines"
    3002 CopyFailed General true "copying a table failed" "see the cause above; mend it, then start the node again"
    3003 StreamBroken Connection true "the stream between the agents broke" "start the operation again once the agents reach each other"
    3004 CountsDiffer Integrity false "row counts differ" "start the node again; please report this with both agents' logs"
    3101 SessionUnknown Conflict false "the source holds no such session" "steepctl node resume NODE starts it anew"
    3102 SessionExpired Timeout true "the source let go of the session because nobody renewed it" "steepctl node resume NODE starts it anew; raise copy.session_lease for slow networks"
    3103 DdlWaits Conflict true "a DDL on the source waits behind the copy" "run the DDL first, then start the node again; or set copy.on_blocked_ddl = \"wait\""
    3104 SchemaChanged Schema false "a table changed on the source during the copy" "start the node again; run no DDL meanwhile"
    3107 SnapshotLost General true "the source's snapshot is gone" "steepctl node resume NODE starts it anew"
    3108 KeeperFailed General true "the process that keeps a snapshot cannot do its work" "see the agent's log on the source; its user must be able to run steep-agent and to write node.state_dir"
    3201 RestoreFailed General false "pg_restore could not make the schema" "see the cause above; mend it on the source or the target, then start the node again"
    3202 DumpFailed General false "pg_dump could not read the schema" "see the cause above"
    3301 NotReplicated Precondition false "a table does not replicate from the source" "steepctl node show NODE lists its subscriptions; a table that never replicated comes with steepctl node start"
    3302 SwitchBlocked Timeout true "somebody holds a lock on a table that is to be switched" "end the transaction that holds it, then ask again"
    3401 SnapshotDirectory Precondition false "a directory cannot take a snapshot" "name an absolute path on the host of the node's agent, where nothing is yet or an empty directory of the agent's user"
    3402 SnapshotIncomplete Integrity false "a snapshot is not complete" "nothing may be loaded from it; write a new one: steepctl snapshot generate NODE --dir DIR"
    3403 ManifestRefused Integrity false "a snapshot's manifest is not believed" "do not use it; write a new one: steepctl snapshot generate NODE --dir DIR"
    3404 SnapshotDamaged Integrity false "a file of a snapshot is not what its manifest says" "copy the directory again and check it: steepctl snapshot verify DIR; or write a new snapshot"
    3405 SnapshotUnsafe Integrity false "a snapshot's directory holds what belongs to no snapshot" "find out who put it there; a snapshot is files with ordinal names, no links and nothing else"
    3406 SnapshotUnknown General false "no such snapshot" "steepctl snapshot list shows which there are"
    3407 SnapshotSlotLost Precondition false "the slot of a snapshot does not carry what was written since" "write a new one: steepctl snapshot generate NODE --dir DIR; or load the rows alone with --no-subscribe"
    3408 SnapshotInUse Conflict false "a snapshot is being applied" "steepctl op list shows the operation; delete the snapshot when it has ended"
    3409 SnapshotStale Schema false "a snapshot no longer fits the node it is of" "write a new one: steepctl snapshot generate NODE --dir DIR"
    3410 SnapshotStorage General false "the files of a snapshot cannot be read or written" "see the cause: free space, or give the directory to the agent's user"
    3411 SnapshotOneWay Precondition false "nothing that replicates both ways can begin from this snapshot" "apply it with --one-way, or: steepctl node start TARGET --from SOURCE"
    3412 SnapshotPartly Precondition false "the target has some of a snapshot's tables and lacks others" "drop those it has, or make all of them: steepctl schema plan SOURCE TARGET"
    3413 SnapshotGone Precondition false "a snapshot has expired, was deleted or was never complete" "steepctl snapshot list --all shows what became of it; write a new one: steepctl snapshot generate NODE --dir DIR"
    3414 SnapshotFilesMissing Precondition false "the agent of a snapshot's node does not have its files" "steepctl snapshot verify SNAPSHOT says what is wrong; put the directory back, or apply a copy of it with --input DIR"
    3415 StoreRefused Precondition false "an object store refuses what is asked of it" "see the store's answer above; check the key in snapshots.s3.credentials, snapshots.s3.region, and that it may list, read, write and delete below the prefix"
    3416 StoreUnreachable General true "an object store does not answer" "check snapshots.s3.endpoint of the node's agent and the way there, then ask again"
    3417 BucketMissing Precondition false "there is no such bucket" "make the bucket, or name another: s3://BUCKET/PREFIX"
    3501 MethodInMesh Precondition false "neither PostgreSQL's own copy nor a backup made by hand can be exact among more than two nodes" "have the agents copy: steepctl node start NODE --from SOURCE --method direct; or replicate with --one-way"
    3502 NativeCopyFailing General false "PostgreSQL cannot copy a table by itself" "PostgreSQL's log on the target says why; mend it, then start the node again, or with --method direct"
    3503 LargeTable Precondition false "a table is too large to be copied unasked" "make the node from a backup made by hand: steepctl node prepare SOURCE --for pg_dump; or name a method: --method direct"
    3511 PreparedUnknown Precondition false "the node is not prepared for this" "steepctl node prepare NODE --list"
    3512 BackupWrong Integrity false "what was restored is not the backup that was prepared for" "restore the node from the right backup, then complete it again"
    3513 BackupElsewhere Integrity false "what was restored is not of the moment at which the slot begins" "dump again with the snapshot that steepctl node prepare NODE --list shows, restore, then complete the node again"
    3514 TableMissing Precondition false "a table was not restored" "restore the whole backup, then complete the node again"
    3515 CopyNotPromoted Precondition false "the copy was not promoted" "make the copy again, and end its recovery before it is written to: touch DATADIR/recovery.signal; then start it with -c restore_command=false"
    3516 NotACopy Conflict false "the database is no copy of the node that was prepared" "point [postgres] in this agent's agent.toml at the copy; steepctl node prepare SOURCE --list shows what was prepared"
    3517 CopyNotAdopted Precondition false "the node was not taken over from a physical copy" "stop the node's agent, then on its host: steep-agent adopt-copy --prepare-id ID"
    3518 CopyWasActive Integrity false "the copy has done more than its source did" "make the copy again, and let nobody write to it before it is completed"
    3519 SubscriptionsElsewhere Precondition false "other databases of the copy hold subscriptions of its source" "in each: alter subscription NAME disable; alter subscription NAME connection 'host=/nonexistent'; alter subscription NAME set (slot_name = none); drop subscription NAME; then adopt the copy again"
    3520 WalUnreadable Precondition false "the agent's role may not read WAL files" "grant execute on function pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) to ROLE; or let the agent connect as a superuser"
    4001 OperationRunning Conflict false "an operation already runs on the node" "steepctl op watch ID follows it; steepctl node cancel NODE stops it"
    4002 IllegalState Conflict false "the node's state does not allow this" "steepctl node show NODE says what it can do"
    4003 NothingRuns Conflict false "nothing runs on the node" "steepctl op list shows what ran"
    4004 OperationUnknown General false "no such operation" "steepctl op list shows the operations"
    4005 Interrupted General true "the agent ended while the operation ran" "it was cleaned up; steepctl node resume NODE starts it anew"
    4006 Cancelled Cancelled false "the operation was cancelled" "start the node again when ready"
    4007 AmbiguousOperation General false "more than one operation begins like this" "give more of the id"
    4101 ForeignDatabase Conflict false "the database belongs to another node" "point this agent at its own database; to give the database up: drop schema steep_repl cascade"
    4102 StoreTooNew General false "the steep_repl schema was made by a newer agent" "upgrade this agent"
    4103 StoreFailed General true "the agent could not read or write its own schema" "see the cause; check PostgreSQL's log"
    4201 SubscriptionFailing General true "a subscription stopped with an error" "see PostgreSQL's log on the node; mend the row or table, then: alter subscription NAME enable"
    4202 SubscriptionDisabled General false "a subscription is disabled" "alter subscription NAME enable; on the node, once the reason is gone"
    4203 SlotLost General false "a replication slot was lost" "initialize the node again, as deploy/README.md says"
    4204 CatchUpStalled Timeout true "the target does not catch up" "see PostgreSQL's logs on both nodes: can the target's server reach the source's?"
    4205 StillInUse Conflict true "something that should be free is still in use" "end the process named above, or try again"
    4206 SlotGone General false "a replication slot that a node reads is gone" "initialize the node again, as deploy/README.md says"
    4207 LagTooLarge General true "a node is too far behind its source" "see that its agent and PostgreSQL run and reach the source; watch.lag_limit in agent.toml sets the limit"
    4208 WalMissing General false "WAL that a replication slot needs is not there any more" "put the files back into pg_wal, or initialize the node again, as deploy/README.md says"
    4209 SubscriptionGone General false "a subscription that Steep made was dropped" "take the node out, then initialize it again, as deploy/README.md says"
    4210 LinkUnreachable Precondition false "PostgreSQL cannot reach the socket of the replication link" "usermod -aG postgres steep_agent, then restart the agent; or give replication.socket_dir a directory of the agent's user and PostgreSQL's group, mode 2750"
    4211 LinkSocketUnusable General false "the socket of the replication link cannot be made" "mend replication.socket_dir in agent.toml: a short path to a directory of the agent's own"
    4212 LinkDenied Permission false "a replication link asks for what is not its own" "a node replicates from the slot and publication that were made for it, and runs nothing else: select * from steep_repl.audit_log where action = 'link.denied'"
    4230 PauseFailed General true "what a node applies from the others could not be paused for the snapshot" "see the cause; end long transactions on the source, then start the node again"
    4231 PositionLost General true "nobody can say which changes of another node are in the snapshot" "start the node again; if it repeats, please report this with the agents' logs"
    4232 NotDrained Precondition true "the others have not received all that the node wrote" "wait until they have, and try again; or give that up: steepctl node remove NODE --drop-slots"
    4233 NodeUnreachable Precondition true "the node to be removed cannot be asked" "start its agent and PostgreSQL; or remove it without it: steepctl node remove NODE --drop-slots"
    4234 NamesAlike Conflict false "slots of two nodes cannot be told apart by their names" "drop the slots of the removed node yourself: select pg_drop_replication_slot('SLOT')"
    4240 BudgetExceeded General true "Steep's slots cost their server nearly all that its budget allows" "steepctl slot list NODE shows which: bring back the node that reads it, or drop it; [budget] in agent.toml sets the limits"
    4241 SlotUnknown General false "no such slot" "steepctl slot list NODE shows the slots of a node"
    4242 SlotNeeded Conflict false "a slot is needed" "stop what needs it first; or, what has not been received from it is then lost: --force"
    4243 SlotForeign Conflict false "a slot was not made by Steep" "find out who reads it before it is dropped; --force drops it all the same"
    4301 TablesStandStill General true "tables stand still: changes of theirs were skipped and cannot be brought back" "copy them again: steepctl node reinit NODE --tables TABLES"
    4302 RowsWithoutParent General false "rows refer to rows that are not there" "delete or mend the rows named above on the node they were written on; or copy both tables again: steepctl node reinit NODE --tables TABLES"
    5001 BadRequest General false "the request makes no sense" "see steepctl help"
    5002 UnknownNode General false "no such node" "steepctl node list shows the nodes of the mesh"
    5003 Denied Permission false "your certificate does not allow this" "ask for a certificate with a higher role: steepctl pki issue operator NAME --role ROLE"
    5004 SourceIsTarget Precondition false "source and target are the same node" "name two different nodes"
    5006 Internal General false "something Steep did not expect" "please report this with the agent's log"
    5007 Detached Timeout false "the wait ended before the operation did" "steepctl op watch ID"
    5008 Usage General false "the command line makes no sense" "see --help"
    5009 ConfirmationNeeded Precondition false "nobody confirmed that rows may be destroyed" "look at what would be destroyed with --dry-run, then add --confirm TARGET with the name of the target node"
    5020 IntentMissing Permission false "the request needs an operator's own signature" "use steepctl, which signs what it asks for; other gRPC clients can look, and cancel what runs on the node whose agent they ask"
    5021 IntentInvalid Permission false "a signed request does not hold" "ask again with steepctl; if it repeats, something between you and the node changes requests: see the logs of both agents"
    5022 IntentExpired Permission false "a signed request is out of its time" "ask again; if it repeats, compare the clocks of your machine and of the nodes"
    5023 IntentMisdirected Permission false "a signed request is meant for something else" "ask again with steepctl: a signature serves the action, nodes and options it names, and nothing else"
    5024 IntentExceeded Permission false "more was asked for than an operator has signed" "start again with the tables that are meant; if nobody asked for this, the asking node's key may be stolen"
    5025 IntentUsed Permission false "a signed request was used before" "ask again: steepctl signs every request anew"
    5026 SignerRefused Permission false "whoever signed the request may not ask for it" "ask with a valid certificate of role operator or admin: steepctl pki issue operator NAME --role operator"
    5027 IntentTooLong General false "too many tables are named to be signed" "name schemas with --schemas instead, or all but a few tables with --exclude"
    5040 AgentDrained Conflict true "the agent takes no new work" "steepctl agent drain NODE --undo lets it take work again"
    5041 ContextUnknown General false "no such context" "steepctl config show lists the contexts of the configuration file"
    5042 ClientConfigInvalid General false "steepctl's configuration file is invalid" "mend what is named above, then: steepctl config check"
    5043 TooManyReaders Conflict true "too many follow the events of one agent" "end steepctl events --follow elsewhere, or ask another agent with --peer"
}

impl Code {
    /// The number behind `STP-`.
    pub fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "STP-{:04}", self.number())
    }
}

impl std::str::FromStr for Code {
    type Err = UnknownCode;
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let digits = text.strip_prefix("STP-").or_else(|| text.strip_prefix("stp-")).unwrap_or(text);
        digits
            .parse::<u16>()
            .ok()
            .and_then(|number| Self::ALL.iter().copied().find(|code| code.number() == number))
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no code of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no code this version knows")]
pub struct UnknownCode(String);

/// What went wrong, for whoever has to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stays the same for years.
    pub code: Code,
    /// What was tried and what went wrong, with names: lower case, no full stop.
    pub message: String,
    /// What lay beneath, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// A command to type next, or what to change.
    pub hint: String,
    /// PostgreSQL's five letters, where PostgreSQL said no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqlstate: Option<String>,
    /// The same request may succeed later without any change.
    pub retryable: bool,
}

impl Failure {
    /// A failure with its code's own hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            causes: Vec::new(),
            hint: code.hint().to_owned(),
            sqlstate: None,
            retryable: code.is_retryable(),
        }
    }

    /// With a hint that knows more than the code's.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// With one more thing that lay beneath it.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// With `error` and everything beneath it as causes.
    #[must_use]
    pub fn caused_by(mut self, error: &dyn Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.message)
    }
}

impl Error for Failure {}

/// An error that can say what it means to an operator.
pub trait Explain: Error + Sized {
    /// Its code.
    fn code(&self) -> Code;

    /// A hint better than the code's own, where there is one.
    fn better_hint(&self) -> Option<String> {
        None
    }

    /// The failure to show and to send.
    fn explain(&self) -> Failure {
        let mut failure = Failure::new(self.code(), self.to_string());
        if let Some(source) = self.source() {
            failure = failure.caused_by(source);
        }
        match self.better_hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<&Failure> for v1::Failure {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code.to_string(),
            message: failure.message.clone(),
            causes: failure.causes.clone(),
            hint: failure.hint.clone(),
            retryable: failure.retryable,
            sqlstate: failure.sqlstate.clone().unwrap_or_default(),
        }
    }
}

impl From<v1::Failure> for Failure {
    /// A code this version does not know becomes [`Code::Internal`], with the number kept in the message.
    fn from(failure: v1::Failure) -> Self {
        let (code, message) = match failure.code.parse() {
            Ok(code) => (code, failure.message),
            Err(_) => (Code::Internal, format!("{} {}", failure.code, failure.message)),
        };
        Self {
            code,
            message,
            causes: failure.causes,
            hint: failure.hint,
            sqlstate: Some(failure.sqlstate).filter(|state| !state.is_empty()),
            retryable: failure.retryable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_title_and_a_hint_and_is_found_by_its_number() {
        let mut last = 0;
        for code in Code::ALL {
            assert!(!code.title().is_empty() && !code.hint().is_empty(), "{code} lacks words");
            assert!(code.number() > last, "{code} is out of order");
            last = code.number();
            assert_eq!(code.to_string().parse(), Ok(*code));
        }
    }

    #[test]
    fn a_failure_survives_the_wire() {
        let failure = Failure::new(Code::TargetNotEmpty, "node_b is not empty").cause("public.orders holds 3 rows");
        assert_eq!(Failure::from(v1::Failure::from(&failure)), failure);
    }

    #[test]
    fn a_code_from_a_newer_version_is_kept_readable() {
        let newer = v1::Failure { code: "STP-9999".into(), message: "new trouble".into(), ..Default::default() };
        let failure = Failure::from(newer);
        assert_eq!(failure.code, Code::Internal);
        assert_eq!(failure.message, "STP-9999 new trouble");
    }
}
