//! A snapshot in an object store that speaks S3: the same names below a prefix as in a directory.
//!
//! An object is there under its name only when all of it has arrived, as uploads come into being with their last request. What
//! is asked is asked again while the store does not answer, for as long as the configuration says. Does not know what the
//! objects hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as StdError,
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpRequestBody},
    multipart::MultipartStore as _,
    path::Path,
    signer::{SignedUrlOptions, Signer as _},
};
use steep_protocol::wire::https::{self, Https};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    Error, SINGLE,
    credentials::Credentials,
    is_part_name,
    object::NewObject,
    web::{Answered, Web, tag},
};
use crate::config::S3;

/// How an address of a bucket begins.
pub const SCHEME: &str = "s3://";
/// No snapshot has more files: its manifest would be too large.
const MOST_FILES: usize = 250_000;
/// Between two tries at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A request that was signed is good for so long.
const SIGNED_FOR: Duration = Duration::from_secs(300);
/// Unfinished uploads that are given up at a time; nobody leaves so many.
const MOST_UPLOADS: usize = 10_000;

/// Why a store does not do what is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It knows us not, or we may not.
    Refused,
    /// There is no such bucket.
    NoBucket,
    /// It cannot be reached, or cannot answer now.
    Away,
}

/// A bucket and the prefix of one snapshot in it.
#[derive(Debug, Clone)]
pub struct Bucket {
    address: String,
    prefix: Path,
    pub(super) store: AmazonS3,
    client: HttpClient,
    /// A list that takes longer has no end.
    longest_list: Duration,
}

/// What lies below a prefix, page by page.
struct Listed<'a> {
    bucket: &'a Bucket,
    found: BoxStream<'static, object_store::Result<ObjectMeta>>,
    until: Instant,
}

impl Listed<'_> {
    /// The next object. A store may go on for ever, naming none or always more.
    async fn next(&mut self) -> Result<Option<ObjectMeta>, Error> {
        let what = &self.bucket.address;
        let endless = |_| {
            let source = "what it lists has no end".into();
            Error::Store { doing: "list", what: what.clone(), trouble: Trouble::Away, source }
        };
        let found = timeout_at(self.until, self.found.next()).await.map_err(endless)?;
        found.transpose().map_err(|error| told("list", what, error))
    }
}

impl Bucket {
    /// The place called `s3://BUCKET/PREFIX`, in the store and with the key that `settings` name.
    pub fn named(address: &str, settings: &S3) -> Result<Self, Error> {
        let unusable = |why| Error::Unusable { path: PathBuf::from(address), why };
        let address = address.trim_end_matches('/');
        let rest = address.strip_prefix(SCHEME).ok_or_else(|| unusable("the address of a bucket begins with s3://"))?;
        let (bucket, prefix) = rest
            .split_once('/')
            .ok_or_else(|| unusable("the address has no prefix: s3://BUCKET/PREFIX is expected"))?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_plain) {
            return Err(unusable("a bucket's name is 3 to 63 small letters, digits, dots and hyphens"));
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '=' | '/');
        let prefix = Path::parse(prefix).ok().filter(|_| prefix.len() <= 512 && prefix.chars().all(is_plain));
        let prefix =
            prefix.ok_or_else(|| unusable("the prefix is letters, digits, dots, hyphens, _ and =, between /"))?;
        let endpoint = settings.endpoint().map_err(|why| Error::StoreUnset { why })?;
        let web = Https::new(settings.ca.as_deref(), settings.timeout)
            .map_err(|error| Error::StoreUnset { why: format!("snapshots.s3.ca: {}", brief(&error)) })?;
        let (web, credentials) = (Web(web), Credentials::read(settings)?);
        let backoff = BackoffConfig { max_backoff: LONGEST_PAUSE, ..BackoffConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(&settings.region)
            .with_access_key_id(credentials.key)
            .with_secret_access_key(credentials.secret)
            .with_allow_http(settings.allow_http)
            .with_retry(RetryConfig { backoff, max_retries: usize::MAX, retry_timeout: settings.patience })
            // One by one: what is refused is told by a status, not within an answer that says all is well.
            .with_disable_bulk_delete(true)
            .with_http_connector(web.clone());
        if let Some(token) = credentials.token {
            builder = builder.with_token(token);
        }
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        let store = builder.build().map_err(|error| told("use", address, error))?;
        let (address, client) = (address.to_owned(), HttpClient::new(web));
        Ok(Self { address, prefix, store, client, longest_list: settings.patience * 4 })
    }

    /// `s3://BUCKET/PREFIX`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn path_of(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    pub(super) fn address_of(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Whether a snapshot can be written there: nothing is below the prefix.
    pub async fn check_free(&self) -> Result<(), Error> {
        match self.listed().next().await? {
            None => Ok(()),
            Some(_) => Err(Error::Unusable { path: self.address.clone().into(), why: "is not empty" }),
        }
    }

    fn listed(&self) -> Listed<'_> {
        let until = Instant::now() + self.longest_list;
        Listed { bucket: self, found: self.store.list(Some(&self.prefix)), until }
    }

    /// Every object by its name and size, as far as a snapshot has such names.
    ///
    /// Fails with [`Error::Unsafe`] on names that no snapshot has.
    pub async fn files(&self) -> Result<BTreeMap<String, u64>, Error> {
        let strange = |path: String, why| Error::Unsafe { path: path.into(), why };
        let (mut listed, mut files) = (self.listed(), BTreeMap::new());
        while let Some(found) = listed.next().await? {
            let name =
                found.location.as_ref().strip_prefix(self.prefix.as_ref()).map(|name| name.trim_start_matches('/'));
            let name = name.unwrap_or_default().to_owned();
            if !(SINGLE.contains(&name.as_str()) || is_part_name(&name)) {
                return Err(strange(self.address_of(&name), "is no name of a snapshot's file"));
            }
            files.insert(name, found.size);
            if files.len() > MOST_FILES {
                return Err(strange(self.address.clone(), "holds more files than a snapshot has"));
            }
        }
        Ok(files)
    }

    /// What the object `name` holds behind its first `offset` bytes, as it comes.
    pub async fn read(&self, name: &str, offset: u64) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        if !(SINGLE.contains(&name) || is_part_name(name)) {
            let why = "is no name of a snapshot's file";
            return Err(Error::Unsafe { path: self.address_of(name).into(), why });
        }
        let range = (offset > 0).then_some(GetRange::Offset(offset));
        let options = GetOptions { range, ..GetOptions::default() };
        let address = self.address_of(name);
        let found = match self.store.get_opts(&self.path_of(name), options).await {
            Ok(found) => found,
            Err(error) => match refusal(&error).map(|refused| refused.status) {
                // It has ended where it is to go on.
                Some(416) => return Ok(futures::stream::empty().boxed()),
                _ => return Err(told("read", &address, error)),
            },
        };
        Ok(found.into_stream().map(move |block| block.map_err(|error| told("read", &address, error))).boxed())
    }

    /// Begins an object; it is there when [`NewObject::finish`] says so, and given up once `stop` is cancelled.
    pub fn create(&self, name: &str, stop: CancellationToken) -> NewObject {
        debug_assert!(SINGLE.contains(&name) || is_part_name(name), "{name} is no name of a snapshot's file");
        NewObject::new(self.clone(), name, stop)
    }

    /// Takes away every object a snapshot has, the manifest first, and every upload that was not finished. Says whether there
    /// was anything: what was just given up may still be on its way, so that it is worth another look.
    pub async fn remove(&self) -> Result<bool, Error> {
        let mut had_any = self.abort_uploads().await?;
        let mut names = Vec::new();
        let mut listed = self.listed();
        // What is more than a snapshot has is looked at once more when these are gone.
        while names.len() < MOST_FILES
            && let Some(found) = listed.next().await?
        {
            let location = found.location;
            let name = location.as_ref().strip_prefix(self.prefix.as_ref()).unwrap_or_default().trim_start_matches('/');
            // Somebody else's objects are not ours to take away.
            if SINGLE.contains(&name) || is_part_name(name) {
                names.push(name.to_owned());
            }
        }
        had_any |= !names.is_empty();
        // The manifest first: what is left is no snapshot then.
        let (first, rest): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name == super::MANIFEST);
        for names in [first, rest] {
            let paths = names.iter().map(|name| Ok(self.path_of(name))).collect::<Vec<_>>();
            let mut removed = self.store.delete_stream(futures::stream::iter(paths).boxed());
            while let Some(done) = removed.next().await {
                match done {
                    Err(error) if refusal(&error).is_none_or(|refused| refused.code != "NoSuchKey") => {
                        return Err(told("remove from", &self.address, error));
                    }
                    _ => {}
                }
            }
        }
        Ok(had_any)
    }

    /// Whether there is an object `name` of so many bytes.
    pub(super) async fn has(&self, name: &str, bytes: u64) -> bool {
        self.store.head(&self.path_of(name)).await.is_ok_and(|found| found.size == bytes)
    }

    /// Ends every upload below the prefix that was not finished, and says whether there were any.
    pub async fn abort_uploads(&self) -> Result<bool, Error> {
        let mut given_up = BTreeSet::new();
        while given_up.len() < MOST_UPLOADS {
            let mut uploads = self.uploads().await?;
            // One that is still listed was listed too late, or by a store that lies.
            uploads.retain(|(_, id)| given_up.insert(id.clone()));
            if uploads.is_empty() {
                break;
            }
            for (key, id) in uploads {
                let path = Path::from(key.as_str());
                self.abort(&path, &id).await?;
            }
        }
        Ok(!given_up.is_empty())
    }

    /// Ends an upload; one that is gone already is no error.
    pub(super) async fn abort(&self, path: &Path, id: &String) -> Result<(), Error> {
        match self.store.abort_multipart(path, id).await {
            Err(error) if refusal(&error).is_none_or(|refused| refused.code != "NoSuchUpload") => {
                Err(told("give up an upload of", path.as_ref(), error))
            }
            _ => Ok(()),
        }
    }

    /// Some uploads below the prefix that were not finished: key and id of each. None where the store cannot say.
    async fn uploads(&self) -> Result<Vec<(String, String)>, Error> {
        let doing = "list unfinished uploads of";
        let failed = |error| told(doing, &self.address, error);
        let prefix = format!("{}/", self.prefix);
        let options = SignedUrlOptions::default().with_query([("uploads", ""), ("prefix", prefix.as_str())]);
        let (get, root) = ("GET".parse().expect("a method"), Path::default());
        let url = self.store.signed_url_opts(get, &root, SIGNED_FOR, &options).await.map_err(failed)?;
        let mut request = object_store::client::HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().expect("a URL is a URI");
        let away = |source: Box<dyn StdError + Send + Sync>| Error::Store {
            doing,
            what: self.address.clone(),
            trouble: Trouble::Away,
            source,
        };
        let response = match self.client.execute(request).await {
            Ok(response) => response,
            Err(error) => match refusal(&error) {
                Some(refused) if refused.status == 405 => return Ok(Vec::new()),
                Some(refused) => return Err(refused_to(doing, &self.address, refused.clone())),
                None => return Err(away(brief(&error).into())),
            },
        };
        match response.status().as_u16() {
            501 => return Ok(Vec::new()),
            status if status >= 300 => return Err(away(format!("the store answered {status}").into())),
            _ => {}
        }
        let text = response.into_body().bytes().await.map_err(|error| away(brief(&error).into()))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let uploads =
            text.split("<Upload>").skip(1).map(|upload| (unescaped(&tag(upload, "Key")), tag(upload, "UploadId")));
        // What is not below our prefix is not ours, whatever the store says.
        Ok(uploads.filter(|(key, _)| key.starts_with(&prefix)).collect())
    }
}

/// The five characters that XML writes otherwise.
fn unescaped(text: &str) -> String {
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    plain.replace("&amp;", "&")
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// What the store refused, where it was that.
pub(super) fn refusal<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Answered> {
    chain(error).find_map(|error| error.downcast_ref::<Answered>())
}

fn is_path_error(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(|error| error.is::<object_store::path::Error>())
}

/// What matters of a long chain of causes: what our own client says, and what is at the bottom.
fn brief(error: &(dyn StdError + 'static)) -> String {
    let last = chain(error).last().map(ToString::to_string).unwrap_or_default();
    match chain(error).find_map(|error| error.downcast_ref::<https::Error>()) {
        Some(ours) if ours.to_string() != last => format!("{ours}: {last}"),
        _ => last,
    }
}

/// What a store's error means to whoever asked for `doing` with `what`.
pub(super) fn told(doing: &'static str, what: &str, error: object_store::Error) -> Error {
    if let Some(refused) = refusal(&error) {
        return refused_to(doing, what, refused.clone());
    }
    if is_path_error(&error) {
        return Error::Unsafe { path: what.into(), why: "holds what is no name of a snapshot's file" };
    }
    Error::Store { doing, what: what.to_owned(), trouble: Trouble::Away, source: brief(&error).into() }
}

fn refused_to(doing: &'static str, what: &str, refused: Answered) -> Error {
    let trouble = match (refused.status, refused.code.as_str()) {
        (404, "NoSuchBucket") => Trouble::NoBucket,
        (404, "NoSuchKey" | "") => return Error::Missing(what.into()),
        _ => Trouble::Refused,
    };
    Error::Store { doing, what: what.to_owned(), trouble, source: Box::new(refused) }
}
