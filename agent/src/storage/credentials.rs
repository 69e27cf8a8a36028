//! Who we are at an object store: a file in the form of `~/.aws/credentials`, or the environment.
//!
//! They are read anew for each use, so that a key can be exchanged while the agent runs. Nothing of them is logged.

use std::{env, fs, io, path::Path};

use super::Error;
use crate::config::S3;

/// An access key.
pub(super) struct Credentials {
    pub(super) key: String,
    pub(super) secret: String,
    /// Where the key is good for a while only.
    pub(super) token: Option<String>,
}

impl Credentials {
    /// Those `settings` name, or the environment has.
    pub(super) fn read(settings: &S3) -> Result<Self, Error> {
        let unset = |why: String| Error::StoreUnset { why };
        let Some(path) = &settings.credentials else {
            let from = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
            let found = Self::of(from("AWS_ACCESS_KEY_ID"), from("AWS_SECRET_ACCESS_KEY"), from("AWS_SESSION_TOKEN"));
            return found.ok_or_else(|| {
                unset("snapshots.s3.credentials is not set, nor are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".into())
            });
        };
        let failed = |source| Error::Io { doing: "read", path: path.clone(), source };
        if is_open(path).map_err(failed)? {
            return Err(unset(format!("{} can be read by others: chmod 600", path.display())));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        parse(&text).ok_or_else(|| {
            unset(format!("{} has no aws_access_key_id and aws_secret_access_key in [default]", path.display()))
        })
    }

    fn of(key: Option<String>, secret: Option<String>, token: Option<String>) -> Option<Self> {
        Some(Self { key: key?, secret: secret?, token })
    }
}

#[cfg(unix)]
fn is_open(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(path)?.mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn is_open(_: &Path) -> io::Result<bool> {
    Ok(false)
}

/// The section `[default]`, or what stands before any.
fn parse(text: &str) -> Option<Credentials> {
    let (mut is_ours, mut key, mut secret, mut token) = (true, None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_ours = section.trim() == "default";
        } else if let (true, Some((name, value))) = (is_ours, line.split_once('=')) {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => key = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Credentials::of(key, secret, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_section_counts() {
        let whole =
            "# mine\n[other]\naws_access_key_id = x\n[default]\naws_access_key_id = k\naws_secret_access_key=s=\n";
        let read = parse(whole).expect("it is whole");
        assert_eq!((read.key.as_str(), read.secret.as_str(), read.token), ("k", "s=", None));
        let bare = parse("aws_access_key_id=k\naws_secret_access_key=s\naws_session_token=t").expect("it is whole");
        assert_eq!(bare.token.as_deref(), Some("t"));
        for text in ["", "[default]\naws_access_key_id = k\n", "[other]\naws_access_key_id=k\naws_secret_access_key=s"]
        {
            assert!(parse(text).is_none(), "{text:?}");
        }
    }
}
