//! Which agents to ask and with which certificate: the command line, the environment, and the contexts of
//! `steepctl.toml`, whatever is closer to the operator first.
//!
//! ```toml
//! default_context = "prod"
//!
//! [contexts.prod]
//! peers = ["db1.example.net:7432", "db2.example.net:7432"]
//! cert = "operator-alice.pem"
//! ```
//!
//! A context named with `--context` goes before what the environment says; one that is there by default goes behind it. A
//! certificate brings its key and root along: those of another place are never mixed in.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use steep_protocol::failure::{Code, Failure};

use crate::cli::peer;

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This option of the command line.
    Flag(&'static str),
    /// This environment variable.
    Environment(&'static str),
    /// A context of the configuration file.
    Context(String),
    /// `default_context` of the configuration file.
    File,
    /// The place beside the certificate.
    Beside,
    /// Nobody gave it.
    Nowhere,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(name) | Self::Environment(name) => f.write_str(name),
            Self::Context(name) => write!(f, "context {name}"),
            Self::File => f.write_str("default_context"),
            Self::Beside => f.write_str("beside the certificate"),
            Self::Nowhere => f.write_str("not given"),
        }
    }
}

/// A setting and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// As it is used.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

impl<T> Setting<T> {
    fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

/// What the command line and the environment give; origins are of those two kinds, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The context's name.
    pub context: Setting<Option<String>>,
    /// Agents to ask.
    pub peers: Setting<Vec<String>>,
    /// The certificate.
    pub cert: Setting<Option<PathBuf>>,
    /// Its key.
    pub key: Setting<Option<PathBuf>>,
    /// The root.
    pub ca: Setting<Option<PathBuf>>,
}

/// What is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The context's name.
    pub context: Setting<Option<String>>,
    /// Agents to ask, in this order.
    pub peers: Setting<Vec<String>>,
    /// The certificate.
    pub cert: Setting<Option<PathBuf>>,
    /// Its key.
    pub key: Setting<Option<PathBuf>>,
    /// The root.
    pub ca: Setting<Option<PathBuf>>,
}

/// One way to a mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Context {
    /// Agents to ask, in this order.
    pub peers: Vec<String>,
    /// The certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The root.
    pub ca: Option<PathBuf>,
}

/// The configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The context that is used when none is named.
    pub default_context: Option<String>,
    /// All contexts.
    pub contexts: BTreeMap<String, Context>,
    /// Where the file is, or would be.
    #[serde(skip)]
    pub path: PathBuf,
}

impl File {
    /// The file at `path`, or at its usual place, where it may be missing.
    pub fn load(path: Option<&Path>) -> Result<Self, Failure> {
        let usual = usual_place();
        let Some(path) = path.map(Path::to_path_buf).or(usual.value) else { return Ok(Self::default()) };
        let must_be_there = usual.origin != Origin::Nowhere;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_be_there => {
                return Ok(Self { path, ..Self::default() });
            }
            Err(error) => {
                let failure = Failure::new(Code::ClientConfigInvalid, format!("cannot read {}", path.display()));
                return Err(failure.caused_by(&error));
            }
        };
        Self::parse(&text, &path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Failure> {
        let invalid = |reason: String| {
            Failure::new(Code::ClientConfigInvalid, format!("{} is invalid", path.display())).cause(reason)
        };
        let mut file: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            invalid(format!("{line}{}", error.message().trim().replace('\n', ", ")))
        })?;
        file.path = path.to_owned();
        let folder = path.parent().unwrap_or(Path::new(""));
        for (name, context) in &mut file.contexts {
            for address in &context.peers {
                peer(address).map_err(|reason| invalid(format!("contexts.{name}.peers: {address:?}: {reason}")))?;
            }
            for place in [&mut context.cert, &mut context.key, &mut context.ca].into_iter().flatten() {
                *place = folder.join(at_home(place));
            }
        }
        if let Some(name) = &file.default_context
            && !file.contexts.contains_key(name)
        {
            return Err(file.unknown(name));
        }
        Ok(file)
    }

    fn unknown(&self, name: &str) -> Failure {
        let failure = Failure::new(Code::ContextUnknown, format!("no context {name:?} in {}", self.path.display()));
        let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
        match known[..] {
            [] => failure.cause("it has none").hint(format!("add [contexts.{name}] with peers and cert to the file")),
            _ => failure.cause(format!("it has {}", known.join(", "))),
        }
    }
}

/// Where the configuration file is looked for; from nowhere: at its usual place, where it may be missing.
fn usual_place() -> Setting<Option<PathBuf>> {
    let set = |name: &'static str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("STEEPCTL_CONFIG") {
        return Setting::new(Some(path), Origin::Environment("STEEPCTL_CONFIG"));
    }
    let folder = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    Setting::new(folder.map(|folder| folder.join("steep/steepctl.toml")), Origin::Nowhere)
}

/// `~/x` in the operator's home.
fn at_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), env::var_os("HOME")) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path.to_owned(),
    }
}

impl Given {
    /// Whether the configuration file is needed to ask an agent.
    pub fn needs_file(&self) -> bool {
        self.context.value.is_some() || self.peers.value.is_empty() || self.cert.value.is_none()
    }

    /// What is used, with the contexts of `file`. Fails where a context is named that is not there.
    pub fn settle(&self, file: &File) -> Result<Settings, Failure> {
        let chosen = match &self.context.value {
            Some(_) => self.context.clone(),
            None => match &file.default_context {
                Some(name) => Setting::new(Some(name.clone()), Origin::File),
                None => Setting::new(None, Origin::Nowhere),
            },
        };
        let context = match &chosen.value {
            Some(name) => file.contexts.get(name).ok_or_else(|| file.unknown(name))?.clone(),
            None => Context::default(),
        };
        let from = Origin::Context(chosen.value.clone().unwrap_or_default());
        let is_named = matches!(chosen.origin, Origin::Flag(_));
        let is_behind =
            |origin: &Origin| *origin == Origin::Nowhere || is_named && matches!(origin, Origin::Environment(_));
        let peers = match is_behind(&self.peers.origin) && !context.peers.is_empty() {
            true => Setting::new(context.peers.clone(), from.clone()),
            false => self.peers.clone(),
        };
        let takes_identity = is_behind(&self.cert.origin) && context.cert.is_some();
        let cert = match takes_identity {
            true => Setting::new(context.cert.clone(), from.clone()),
            false => self.cert.clone(),
        };
        let beside = |given: &Setting<Option<PathBuf>>,
                      of_context: &Option<PathBuf>,
                      name: &dyn Fn(&Path) -> PathBuf| {
            match (&cert.value, of_context) {
                _ if matches!(given.origin, Origin::Flag(_)) => given.clone(),
                (_, Some(path)) if takes_identity => Setting::new(Some(path.clone()), from.clone()),
                _ if !takes_identity && given.value.is_some() => given.clone(),
                (Some(cert), _) => Setting::new(Some(name(cert)), Origin::Beside),
                (None, _) => Setting::new(None, Origin::Nowhere),
            }
        };
        let key = beside(&self.key, &context.key, &|cert| cert.with_extension("key"));
        let ca = beside(&self.ca, &context.ca, &|cert| cert.with_file_name("ca.pem"));
        Ok(Settings { context: chosen, peers, cert, key, ca })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "default_context = \"prod\"\n\
        [contexts.prod]\npeers = [\"db1:7432\", \"db2:7432\"]\ncert = \"alice.pem\"\n\
        [contexts.test]\npeers = [\"127.0.0.1:7432\"]\ncert = \"/t/bob.pem\"\nkey = \"/k/bob.key\"\nca = \"/c/ca.pem\"\n";

    fn file() -> File {
        File::parse(FILE, Path::new("/home/a/steepctl.toml")).expect("a good file")
    }

    fn nothing() -> Given {
        fn none<T>() -> Setting<Option<T>> {
            Setting::new(None, Origin::Nowhere)
        }
        Given { context: none(), peers: Setting::new(vec![], Origin::Nowhere), cert: none(), key: none(), ca: none() }
    }

    fn path(text: &str) -> Option<PathBuf> {
        Some(text.into())
    }

    #[test]
    fn the_default_context_gives_what_nobody_else_gives() {
        let settings = nothing().settle(&file()).expect("settled");
        assert_eq!(settings.context, Setting::new(Some("prod".into()), Origin::File));
        assert_eq!(settings.peers.value, ["db1:7432", "db2:7432"]);
        assert_eq!(settings.cert, Setting::new(path("/home/a/alice.pem"), Origin::Context("prod".into())));
        assert_eq!(settings.key, Setting::new(path("/home/a/alice.key"), Origin::Beside));
        assert_eq!(settings.ca.value, path("/home/a/ca.pem"));
        let settings = nothing().settle(&File::default()).expect("settled");
        assert_eq!((settings.peers.origin, settings.key.value), (Origin::Nowhere, None));
    }

    #[test]
    fn the_environment_goes_before_a_default_and_behind_a_context_named_on_the_command_line() {
        let mut given = nothing();
        given.peers = Setting::new(vec!["env:1".into()], Origin::Environment("STEEPCTL_PEER"));
        given.cert = Setting::new(path("/e/eva.pem"), Origin::Environment("STEEPCTL_CERT"));
        let settings = given.settle(&file()).expect("settled");
        assert_eq!((settings.peers.value, settings.cert.value), (vec!["env:1".to_owned()], path("/e/eva.pem")));
        assert_eq!(
            (settings.key.value, settings.ca.value),
            (path("/e/eva.key"), path("/e/ca.pem")),
            "nothing is mixed"
        );
        given.key = Setting::new(path("/e/other.key"), Origin::Environment("STEEPCTL_KEY"));
        given.context = Setting::new(Some("test".into()), Origin::Flag("--context"));
        let settings = given.settle(&file()).expect("settled");
        assert_eq!(
            (settings.peers.value, settings.cert.value),
            (vec!["127.0.0.1:7432".to_owned()], path("/t/bob.pem"))
        );
        assert_eq!((settings.key.value, settings.ca.value), (path("/k/bob.key"), path("/c/ca.pem")));
        given.peers = Setting::new(vec!["flag:1".into()], Origin::Flag("--peer"));
        let settings = given.settle(&file()).expect("settled");
        assert_eq!((settings.peers.value, settings.cert.value), (vec!["flag:1".to_owned()], path("/t/bob.pem")));
    }

    #[test]
    fn a_name_that_is_not_there_is_told_with_those_that_are() {
        let mut given = nothing();
        given.context = Setting::new(Some("live".into()), Origin::Flag("--context"));
        let failure = given.settle(&file()).expect_err("it is not there");
        assert_eq!((failure.code, &failure.causes[..]), (Code::ContextUnknown, &["it has prod, test".to_owned()][..]));
        let failure = given.settle(&File::default()).expect_err("it is not there");
        assert!(failure.hint.contains("[contexts.live]"), "{failure:?}");
    }

    #[test]
    fn a_file_that_is_wrong_is_told_with_line_and_reason() {
        for (text, reason) in [
            ("contexts = 1", "line 1"),
            ("[contexts.a]\npears = []", "unknown field `pears`"),
            ("[contexts.a]\npeers = [\"db1\"]", "contexts.a.peers: \"db1\": it has no port"),
            ("default_context = \"b\"\n[contexts.a]\n", "it has a"),
        ] {
            let failure = File::parse(text, Path::new("x.toml")).expect_err(text);
            assert!(failure.message.contains("x.toml"), "{failure:?}");
            assert!(failure.causes.iter().any(|cause| cause.contains(reason)), "{reason}: {failure:?}");
        }
    }
}
