//! An object store that speaks S3: a real server on a real socket, with real files, that a spec can look into, cut off, stop
//! and make refuse.
//!
//! s3s and s3s-fs do the work; here it also lists uploads that nobody has finished, as stores do, and every connection passes a
//! gate that counts bytes.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{S3, S3Request, S3Response, S3Result, auth::SimpleAuth, dto::*, s3_error, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
};

use tokio_rustls::TlsAcceptor;

use crate::background;

/// Who specs are at the store.
const KEY: &str = "steep-specs";
const SECRET: &str = "only-for-specs";
/// There is one, and its name.
pub const BUCKET: &str = "backups";
const BLOCK: usize = 16 << 10;

static STARTED: AtomicUsize = AtomicUsize::new(0);

/// What happens to connections.
#[derive(Debug)]
struct Gate {
    /// Bytes to and from the store that still pass before all connections break, once; below zero: any number.
    until_cut: [AtomicI64; 2],
    passed: [AtomicU64; 2],
    /// Changed, all connections break.
    cuts: watch::Sender<u64>,
    is_closed: AtomicBool,
    is_frozen: watch::Sender<bool>,
}

/// What a store does that means nobody well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malice {
    /// A list goes on for ever, with names that could be a snapshot's.
    ListsForever,
    /// A list goes on for ever and names nothing.
    ListsNothingForever,
    /// A page of a list is larger than any.
    ListsAtOnce,
    /// A list names what lies above the prefix.
    Climbs,
    /// Whoever asks is sent elsewhere.
    Redirects,
}

/// A store that runs. Ended, and its files taken away, when it drops.
#[derive(Debug)]
pub struct ObjectStore {
    root: PathBuf,
    address: SocketAddr,
    has_tls: bool,
    gate: Arc<Gate>,
    uploads: Uploads,
    refuses: Arc<Mutex<Option<&'static str>>>,
    habits: Arc<Habits>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

/// What this store does otherwise than most.
#[derive(Debug, Default)]
struct Habits {
    names_no_versions: AtomicBool,
    loses_an_answer: AtomicBool,
    malice: Mutex<Option<Malice>>,
}

type Uploads = Arc<Mutex<BTreeMap<String, String>>>;

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ObjectStore {
    /// Starts one with an empty bucket, that speaks plain HTTP.
    pub async fn start() -> Self {
        Self::begin(None).await
    }

    /// The same over TLS, with a certificate for `localhost` that nobody else knows.
    pub async fn start_with_tls() -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a name");
        Self::begin(Some(certified)).await
    }

    async fn begin(certified: Option<rcgen::CertifiedKey<rcgen::KeyPair>>) -> Self {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("steep-s3-{}-{number}", std::process::id()));
        drop(fs::remove_dir_all(&root));
        fs::create_dir_all(root.join("store").join(BUCKET)).expect("it can be made");
        let store = Store {
            files: FileSystem::new(root.join("store")).expect("the directory is there"),
            uploads: Uploads::default(),
            refuses: Arc::default(),
            habits: Arc::default(),
        };
        let gate = Arc::new(Gate {
            until_cut: [AtomicI64::new(-1), AtomicI64::new(-1)],
            passed: Default::default(),
            cuts: watch::Sender::new(0),
            is_closed: AtomicBool::new(false),
            is_frozen: watch::Sender::new(false),
        });
        let (has_tls, acceptor) = (certified.is_some(), certified.as_ref().map(acceptor_of));
        if let Some(certified) = &certified {
            write_private(&root.join("ca.pem"), &certified.cert.pem());
        }
        let (uploads, refuses) = (Arc::clone(&store.uploads), Arc::clone(&store.refuses));
        let habits = Arc::clone(&store.habits);
        let (address, accepting) = {
            let gate = Arc::clone(&gate);
            let begun = background::runtime().spawn(async move {
                let (behind, serving) = serve(store, acceptor).await;
                let (address, passing) = stand_before(behind, gate).await;
                (address, vec![serving, passing])
            });
            begun.await.expect("it starts")
        };
        let key = format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
        write_private(&root.join("credentials"), &key);
        write_private(&root.join("wrong"), &key.replace(SECRET, "another"));
        Self { root, address, has_tls, gate, uploads, refuses, habits, accepting }
    }

    /// What an agent's configuration says of it.
    pub fn toml(&self) -> String {
        self.toml_with("credentials")
    }

    /// The same with a key that the store does not know.
    pub fn toml_of_a_stranger(&self) -> String {
        self.toml_with("wrong")
    }

    fn toml_with(&self, credentials: &str) -> String {
        let file = |name: &str| self.root.join(name).display().to_string();
        let endpoint = match self.has_tls {
            true => format!("endpoint = \"https://localhost:{}\"\nca = {:?}", self.address.port(), file("ca.pem")),
            false => format!("endpoint = \"http://{}\"\nallow_http = true", self.address),
        };
        let credentials = file(credentials);
        format!("[snapshots.s3]\n{endpoint}\ncredentials = {credentials:?}\ntimeout = \"2s\"\npatience = \"5s\"")
    }

    /// What nobody may find in a log.
    pub fn secret(&self) -> &'static str {
        SECRET
    }

    /// The address of a prefix.
    pub fn place(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Where the objects below a prefix are as files.
    pub fn folder(&self, prefix: &str) -> PathBuf {
        self.root.join("store").join(BUCKET).join(prefix)
    }

    /// Every object below a prefix, by its name and size.
    pub fn objects(&self, prefix: &str) -> BTreeMap<String, u64> {
        fn walk(folder: &Path, below: &str, found: &mut BTreeMap<String, u64>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = format!("{below}{}", entry.file_name().to_string_lossy());
                match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => walk(&entry.path(), &format!("{name}/"), found),
                    Ok(metadata) => drop(found.insert(name, metadata.len())),
                    Err(_) => {}
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.folder(prefix), "", &mut found);
        found
    }

    /// The keys of uploads that nobody has finished or given up.
    pub fn unfinished(&self) -> Vec<String> {
        locked(&self.uploads).values().cloned().collect()
    }

    /// Everything breaks, once, when so many more bytes have come in.
    pub fn cut_after_received(&self, bytes: i64) {
        self.gate.until_cut[0].store(bytes, Ordering::Release);
    }

    /// Everything breaks, once, when so many more bytes have gone out.
    pub fn cut_after_sent(&self, bytes: i64) {
        self.gate.until_cut[1].store(bytes, Ordering::Release);
    }

    /// Whether that cut has come.
    pub fn was_cut(&self) -> bool {
        self.gate.until_cut.iter().all(|left| left.load(Ordering::Acquire) < 0) && *self.gate.cuts.borrow() > 0
    }

    /// Bytes that have gone out.
    pub fn sent(&self) -> u64 {
        self.gate.passed[1].load(Ordering::Acquire)
    }

    /// Nobody gets in, and who is in is thrown out; false: as before.
    pub fn is_away(&self, away: bool) {
        self.gate.is_closed.store(away, Ordering::Release);
        if away {
            self.gate.cuts.send_modify(|cuts| *cuts += 1);
        }
    }

    /// Connections stay, and nothing comes; false: all of it comes.
    pub fn is_silent(&self, silent: bool) {
        self.gate.is_frozen.send_replace(silent);
    }

    /// Requests that write are refused with this code of S3; none: as before.
    pub fn refuses(&self, code: Option<&'static str>) {
        *locked(&self.refuses) = code;
    }

    /// Objects have no entity tags, so that nobody can tell whether the rest of one is of the same object.
    pub fn names_no_versions(&self) {
        self.habits.names_no_versions.store(true, Ordering::Release);
    }

    /// The next upload that is finished is there, and whoever has finished it hears of an error.
    pub fn loses_an_answer(&self) {
        self.habits.loses_an_answer.store(true, Ordering::Release);
    }

    /// Whether that answer is still to be lost.
    pub fn has_lost_it(&self) -> bool {
        !self.habits.loses_an_answer.load(Ordering::Acquire)
    }

    /// From now on it means nobody well, in this way; none: as before.
    pub fn is_malicious(&self, malice: Option<Malice>) {
        *locked(&self.habits.malice) = malice;
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        for task in &self.accepting {
            task.abort();
        }
        self.gate.cuts.send_modify(|cuts| *cuts += 1);
        drop(fs::remove_dir_all(&self.root));
    }
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).expect("it can be written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
}

/// The server itself.
async fn serve(store: Store, acceptor: Option<TlsAcceptor>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let mut builder = S3ServiceBuilder::new(store);
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let service = builder.build();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (service, acceptor) = (service.clone(), acceptor.clone());
            tokio::spawn(async move {
                let server = Builder::new(TokioExecutor::new());
                // Whoever hangs up has had enough.
                match acceptor {
                    None => drop(server.serve_connection(TokioIo::new(stream), service).await),
                    Some(acceptor) => {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        drop(server.serve_connection(TokioIo::new(stream), service).await);
                    }
                }
            });
        }
    });
    (address, serving)
}

fn acceptor_of(certified: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for them")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into());
    TlsAcceptor::from(Arc::new(config.expect("the key is the certificate's")))
}

/// The gate before it.
async fn stand_before(behind: SocketAddr, gate: Arc<Gate>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let passing = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if !gate.is_closed.load(Ordering::Acquire) {
                tokio::spawn(pass(stream, behind, Arc::clone(&gate)));
            }
        }
    });
    (address, passing)
}

async fn pass(stream: TcpStream, behind: SocketAddr, gate: Arc<Gate>) {
    let mut cuts = gate.cuts.subscribe();
    let Ok(store) = TcpStream::connect(behind).await else { return };
    let ((from, to), (back, away)) = (stream.into_split(), store.into_split());
    tokio::select! {
        _ = cuts.changed() => {}
        () = one_way(from, away, &gate, 0) => {}
        () = one_way(back, to, &gate, 1) => {}
    }
}

async fn one_way(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, gate: &Gate, way: usize) {
    let mut block = vec![0; BLOCK];
    let mut frozen = gate.is_frozen.subscribe();
    while let Ok(read @ 1..) = from.read(&mut block).await {
        if frozen.wait_for(|is_frozen| !is_frozen).await.is_err() {
            return;
        }
        let left = &gate.until_cut[way];
        let before = left.load(Ordering::Acquire);
        if before >= 0 {
            let after = before - i64::try_from(read).unwrap_or(i64::MAX);
            left.store(after.max(-1), Ordering::Release);
            if after < 0 {
                gate.cuts.send_modify(|cuts| *cuts += 1);
                return;
            }
        }
        gate.passed[way].fetch_add(read as u64, Ordering::AcqRel);
        if to.write_all(&block[..read]).await.is_err() {
            return;
        }
    }
}

/// Files, and the uploads that are under way.
struct Store {
    files: FileSystem,
    uploads: Uploads,
    refuses: Arc<Mutex<Option<&'static str>>>,
    habits: Arc<Habits>,
}

/// So many names are in a page that is too large, or one of very many.
const NAMES: [usize; 2] = [100_000, 20_000];

impl Store {
    /// A page of a list as a malicious store makes it; none: as it is.
    fn page(&self, input: &ListObjectsV2Input) -> S3Result<Option<ListObjectsV2Output>> {
        let prefix = input.prefix.clone().unwrap_or_default();
        let token = input.continuation_token.as_deref().and_then(|token| token.parse::<usize>().ok()).unwrap_or(0);
        let parts = |names: usize| {
            let numbers = token * names..(token + 1) * names;
            numbers.map(|number| format!("{prefix}data/{number:06}.csv")).collect()
        };
        let names: Vec<String> = match *locked(&self.habits.malice) {
            Some(Malice::ListsForever) => parts(NAMES[1]),
            Some(Malice::ListsAtOnce) => parts(NAMES[0]),
            Some(Malice::ListsNothingForever) => Vec::new(),
            Some(Malice::Climbs) => vec![format!("{prefix}manifest.json"), format!("{prefix}../precious")],
            Some(Malice::Redirects) => return Err(elsewhere()),
            None => return Ok(None),
        };
        let object = |name| Object {
            key: Some(name),
            size: Some(7),
            last_modified: Some(std::time::SystemTime::UNIX_EPOCH.into()),
            ..Object::default()
        };
        let goes_on = !matches!(*locked(&self.habits.malice), Some(Malice::Climbs));
        Ok(Some(ListObjectsV2Output {
            contents: Some(names.into_iter().map(object).collect()),
            is_truncated: Some(goes_on),
            next_continuation_token: goes_on.then(|| (token + 1).to_string()),
            ..ListObjectsV2Output::default()
        }))
    }

    fn check(&self) -> S3Result<()> {
        match *locked(&self.refuses) {
            None => Ok(()),
            Some("AccessDenied") => Err(s3_error!(AccessDenied, "this key may not write")),
            Some("SlowDown") => Err(s3_error!(SlowDown, "too much at once")),
            Some(other) => panic!("{other} is not refused here"),
        }
    }
}

/// Where an attacker would like to be asked.
fn elsewhere() -> s3s::S3Error {
    let mut error = s3_error!(TemporaryRedirect, "ask there");
    let there = "http://127.0.0.1:9/".parse().expect("a header's value");
    error.set_headers([(s3s::header::LOCATION, there)].into_iter().collect());
    error
}

type Answer<T> = S3Result<S3Response<T>>;

#[tonic::async_trait]
impl S3 for Store {
    async fn get_object(&self, req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let mut found = self.files.get_object(req).await?;
        if self.habits.names_no_versions.load(Ordering::Acquire) {
            found.output.e_tag = None;
        }
        if *locked(&self.habits.malice) == Some(Malice::Redirects) {
            return Err(elsewhere());
        }
        Ok(found)
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        self.files.head_object(req).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        match self.page(&req.input)? {
            Some(page) => Ok(S3Response::new(page)),
            None => self.files.list_objects_v2(req).await,
        }
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        self.check()?;
        self.files.put_object(req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        self.files.delete_object(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        self.check()?;
        let key = req.input.key.clone();
        let begun = self.files.create_multipart_upload(req).await?;
        locked(&self.uploads).insert(begun.output.upload_id.clone().expect("it has an id"), key);
        Ok(begun)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        self.check()?;
        self.files.upload_part(req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        let id = req.input.upload_id.clone();
        if !locked(&self.uploads).contains_key(&id) {
            return Err(s3_error!(NoSuchUpload));
        }
        let done = self.files.complete_multipart_upload(req).await?;
        locked(&self.uploads).remove(&id);
        match self.habits.loses_an_answer.swap(false, Ordering::AcqRel) {
            true => Err(s3_error!(InternalError, "nobody knows")),
            false => Ok(done),
        }
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        let id = req.input.upload_id.clone();
        if locked(&self.uploads).remove(&id).is_none() {
            return Err(s3_error!(NoSuchUpload));
        }
        self.files.abort_multipart_upload(req).await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        let prefix = req.input.prefix.unwrap_or_default();
        let uploads = locked(&self.uploads);
        let ours = uploads.iter().filter(|(_, key)| key.starts_with(&prefix));
        let upload = |(id, key): (&String, &String)| MultipartUpload {
            key: Some(key.clone()),
            upload_id: Some(id.clone()),
            ..MultipartUpload::default()
        };
        let uploads = Some(ours.map(upload).collect());
        Ok(S3Response::new(ListMultipartUploadsOutput { uploads, ..ListMultipartUploadsOutput::default() }))
    }
}
