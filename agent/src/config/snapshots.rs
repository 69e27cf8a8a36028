//! `[snapshots.s3]`: where `s3://BUCKET/PREFIX` is, and who we are there.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;

use super::quantity::duration;

/// `[snapshots]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshots {
    /// Object stores.
    pub s3: S3,
}

impl Snapshots {
    /// The same for whoever does not wait longer than `limit` for an answer.
    pub fn within(&self, limit: Duration) -> Self {
        // The last of several tries begins when patience is at its end.
        let (timeout, patience) = (self.s3.timeout.min(limit / 2), self.s3.patience.min(limit / 2));
        Self { s3: S3 { timeout, patience, ..self.s3.clone() } }
    }
}

/// `[snapshots.s3]`
///
/// Where there is no file with credentials they are in the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and
/// `AWS_SESSION_TOKEN`. They are read when they are needed, and are no part of this.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// `https://HOST[:PORT]` of the store. Default: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, or else Amazon's of the region.
    pub endpoint: Option<String>,
    /// The region, as requests are signed.
    pub region: String,
    /// The endpoint may be `http://`: rows travel in the clear.
    pub allow_http: bool,
    /// A file in the form of `~/.aws/credentials`, mode 0600.
    pub credentials: Option<PathBuf>,
    /// The store's root certificates, PEM. Default: those this host trusts.
    pub ca: Option<PathBuf>,
    /// The store is silent when nothing comes for so long.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// A request that the store does not answer, or not now, is tried again for so long.
    #[serde(deserialize_with = "duration")]
    pub patience: Duration,
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

impl S3 {
    /// Where the store is: as configured, or as the environment says; none: Amazon's.
    ///
    /// Fails with what is wrong with it.
    pub fn endpoint(&self) -> Result<Option<String>, String> {
        let named = || variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL"));
        let endpoint = self.endpoint.clone().or_else(named);
        endpoint.as_deref().map_or(Ok(()), |endpoint| self.check(endpoint)).map(|()| endpoint)
    }

    /// What is wrong with an endpoint.
    pub(super) fn check(&self, endpoint: &str) -> Result<(), String> {
        let is_plain = endpoint.starts_with("http://");
        let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        if !host.is_some_and(|host| is_host(host.trim_end_matches('/'))) {
            return Err(format!("{endpoint:?} is not https://HOST[:PORT]"));
        }
        match is_plain && !self.allow_http {
            true => Err(format!("{endpoint:?} is not encrypted; set snapshots.s3.allow_http to have it so")),
            false => Ok(()),
        }
    }
}

/// Whether it is a name or an address, perhaps with a port, that every reader of URLs takes for one.
fn is_host(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok() || text.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(is_plain) && !label.starts_with("xn--");
    let last = name.rsplit('.').next().unwrap_or_default();
    // A name whose end is a number would be read as an address.
    let is_name = name.split('.').all(is_label) && last.starts_with(|c: char| c.is_ascii_alphabetic());
    is_name && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

impl Default for S3 {
    fn default() -> Self {
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        Self {
            endpoint: None,
            region: region.unwrap_or_else(|| "us-east-1".into()),
            allow_http: false,
            credentials: None,
            ca: None,
            timeout: Duration::from_secs(30),
            patience: Duration::from_secs(180),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_perhaps_a_port() {
        let settings = S3 { allow_http: true, ..S3::default() };
        for good in ["https://s3.example.com", "https://minio:9000/", "http://127.0.0.1:9000", "http://[::1]:9000"] {
            assert_eq!(settings.check(good), Ok(()), "{good}");
        }
        for bad in [
            "s3.example.com",
            "https://",
            "https://a b",
            "https://user:secret@host",
            "https://host/path",
            "https://host?x",
            "https://name.127.0.0.1:9000",
            "https://1.2.3",
            "https://0x7f.0x1",
            "https://xn--a",
            "https://host:99999",
        ] {
            assert!(settings.check(bad).is_err(), "{bad}");
        }
        assert!(S3::default().check("http://127.0.0.1:9000").is_err());
    }
}
