//! The first words on a link's socket: what PostgreSQL's clients say before they are let in, and what we answer.
//!
//! A stranger can make us hold a packet of 10,000 bytes at most, as PostgreSQL itself. The password comes in the clear:
//! the socket never leaves the machine, its directory lets PostgreSQL's account in and nobody else, and a secret of 256
//! random bits that serves this one link gains nothing from being hashed on the way.

use std::{fmt, io};

use steep_protocol::failure::{Code, Failure};
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const LARGEST_PACKET: usize = 10_000;
const LONGEST_PASSWORD: usize = 1_000;

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const PROTOCOL_3: u32 = 3 << 16;

const ASK_PASSWORD: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
pub(super) const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0";

/// What the subscription's connection string and one link share; never shown.
#[derive(Clone)]
pub(super) struct Secret(String);

impl Secret {
    /// A new one, from the system's source of randomness.
    pub(super) fn random() -> Result<Self, Failure> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|error| {
            Failure::new(Code::Internal, "the system gives no random bytes").cause(error.to_string())
        })?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The one a connection string holds.
    pub(super) fn known(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// For the connection string.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    fn is(&self, offered: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(offered).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a client asks for that has shown the secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Startup {
    pub(super) user: String,
    pub(super) database: String,
    pub(super) replication: String,
    pub(super) application_name: String,
    pub(super) client_encoding: String,
    pub(super) options: String,
}

/// Who knocked.
#[derive(Debug)]
pub(super) enum Knock {
    /// Somebody with the secret.
    Client(Startup),
    /// Nobody to answer: one that went away, wants a statement cancelled (nothing on a link can be), or is no client.
    Nobody,
    /// Somebody to be told why not.
    Refused(Refused),
}

/// Why a client is not let in, in PostgreSQL's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) sqlstate: &'static str,
    pub(super) message: String,
    pub(super) hint: String,
}

impl Refused {
    pub(super) fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { sqlstate, message: message.into(), hint: String::new() }
    }

    /// As the ErrorResponse after which a server closes the connection.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut field = |kind: u8, text: &str| {
            body.push(kind);
            body.extend(text.bytes().filter(|byte| *byte != 0));
            body.push(0);
        };
        field(b'S', "FATAL");
        field(b'V', "FATAL");
        field(b'C', self.sqlstate);
        field(b'M', &self.message);
        if !self.hint.is_empty() {
            field(b'H', &self.hint);
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).expect("a short message");
        [&b"E"[..], &length.to_be_bytes(), &body].concat()
    }
}

impl From<&Failure> for Refused {
    fn from(failure: &Failure) -> Self {
        let sqlstate = match failure.code {
            Code::LinkDenied | Code::Denied => "42501",
            // "connection failure": whoever asked tries again by itself.
            _ => "08006",
        };
        let causes: String = failure.causes.iter().map(|cause| format!(": {cause}")).collect();
        let message = format!("Steep: {}{causes} ({})", failure.message, failure.code);
        Self { sqlstate, message, hint: failure.hint.clone() }
    }
}

/// Hears a client out until it has shown `secret`. The caller limits how long that may take.
pub(super) async fn hear(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), secret: &Secret) -> io::Result<Knock> {
    // Once for each kind of encryption it may ask for, then the packet itself.
    for _ in 0..3 {
        let Some((code, body)) = packet(stream).await? else { return Ok(Knock::Nobody) };
        match code {
            SSL_REQUEST | GSS_REQUEST if body.is_empty() => stream.write_all(b"N").await?,
            CANCEL_REQUEST => return Ok(Knock::Nobody),
            version if version >> 16 == PROTOCOL_3 >> 16 => {
                let Some((startup, unknown)) = parameters(&body) else {
                    return Ok(Knock::Refused(Refused::new("08P01", "invalid startup packet layout")));
                };
                if version != PROTOCOL_3 || !unknown.is_empty() {
                    stream.write_all(&only_version_3_0(&unknown)).await?;
                }
                return Ok(match offers(stream, secret).await? {
                    true => Knock::Client(startup),
                    false => Knock::Refused(Refused::new("28P01", "Steep: this is not the password of this link")),
                });
            }
            version => {
                let (major, minor) = (version >> 16, version & 0xffff);
                let text = format!("unsupported frontend protocol {major}.{minor}: a link speaks 3.0");
                return Ok(Knock::Refused(Refused::new("0A000", text)));
            }
        }
    }
    Ok(Knock::Nobody)
}

/// Code and rest of one packet without a kind; `None` when nothing, or nothing sensible, comes.
async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u32, Vec<u8>)>> {
    let length = match stream.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if !(8..=LARGEST_PACKET).contains(&length) {
        return Ok(None);
    }
    let code = stream.read_u32().await?;
    let mut body = vec![0; length - 8];
    stream.read_exact(&mut body).await?;
    Ok(Some((code, body)))
}

/// Names and values of a start-up packet, and what protocol extensions it names.
fn parameters(body: &[u8]) -> Option<(Startup, Vec<String>)> {
    let body = body.strip_suffix(&[0])?;
    let (mut startup, mut unknown) = (Startup::default(), Vec::new());
    if body.is_empty() {
        return Some((startup, unknown));
    }
    let texts: Vec<&str> =
        body.strip_suffix(&[0])?.split(|byte| *byte == 0).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    for pair in texts.chunks(2) {
        let [name, value] = pair else { return None };
        let place = match *name {
            "user" => &mut startup.user,
            "database" => &mut startup.database,
            "replication" => &mut startup.replication,
            "application_name" => &mut startup.application_name,
            "client_encoding" => &mut startup.client_encoding,
            "options" => &mut startup.options,
            extension if extension.starts_with("_pq_.") => {
                unknown.push(extension.to_owned());
                continue;
            }
            // Any other setting is one of those that the publisher's agent pins.
            _ => continue,
        };
        *place = (*value).to_owned();
    }
    Some((startup, unknown))
}

/// NegotiateProtocolVersion: we speak 3.0, without extensions.
fn only_version_3_0(unknown: &[String]) -> Vec<u8> {
    let names: Vec<u8> = unknown.iter().flat_map(|name| name.bytes().chain([0])).collect();
    let count = u32::try_from(unknown.len()).expect("they fit a packet");
    let body = [&0_u32.to_be_bytes()[..], &count.to_be_bytes(), &names].concat();
    let length = u32::try_from(body.len() + 4).expect("a short message");
    [&b"v"[..], &length.to_be_bytes(), &body].concat()
}

async fn offers(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), secret: &Secret) -> io::Result<bool> {
    stream.write_all(ASK_PASSWORD).await?;
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await? as usize;
    if kind != b'p' || !(5..=LONGEST_PASSWORD).contains(&length) {
        return Ok(false);
    }
    let mut offered = vec![0; length - 4];
    stream.read_exact(&mut offered).await?;
    Ok(offered.strip_suffix(&[0]).is_some_and(|offered| secret.is(offered)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup_packet(version: u32, parameters: &[&str]) -> Vec<u8> {
        let body: Vec<u8> = parameters.iter().flat_map(|text| text.bytes().chain([0])).chain([0]).collect();
        let length = u32::try_from(body.len() + 8).expect("a short packet");
        [&length.to_be_bytes()[..], &version.to_be_bytes(), &body].concat()
    }

    fn password(text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len() + 5).expect("short");
        [&b"p"[..], &length.to_be_bytes(), text.as_bytes(), b"\0"].concat()
    }

    /// What comes of `said`, and what was answered.
    async fn heard(said: &[u8]) -> (io::Result<Knock>, Vec<u8>) {
        let (mut client, mut ours) = tokio::io::duplex(1 << 16);
        client.write_all(said).await.expect("it fits");
        client.shutdown().await.expect("to close");
        let knock = hear(&mut ours, &Secret::known("s3cret")).await;
        drop(ours);
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).await.expect("to read");
        (knock, answered)
    }

    const ASKED: [&str; 8] =
        ["user", "node_a", "database", "shop", "replication", "database", "options", "-c datestyle=ISO"];

    #[tokio::test]
    async fn a_client_with_the_secret_is_heard_whatever_it_asks_for_first() {
        let requests = [SSL_REQUEST, GSS_REQUEST].map(|code| [8_u32.to_be_bytes(), code.to_be_bytes()].concat());
        let packet = startup_packet(PROTOCOL_3, &ASKED);
        let said = [&requests[0][..], &requests[1], &packet, &password("s3cret")].concat();
        let (knock, answered) = heard(&said).await;
        let Ok(Knock::Client(startup)) = knock else { panic!("{knock:?}") };
        assert_eq!((&*startup.user, &*startup.database, &*startup.replication), ("node_a", "shop", "database"));
        assert_eq!(startup.options, "-c datestyle=ISO");
        assert_eq!(answered, [b"NN", ASK_PASSWORD].concat());
    }

    #[tokio::test]
    async fn a_newer_client_is_told_which_protocol_is_spoken() {
        let packet = startup_packet(PROTOCOL_3 + 2, &[&["_pq_.new", "1"][..], &ASKED].concat());
        let (knock, answered) = heard(&[packet, password("s3cret")].concat()).await;
        assert!(matches!(knock, Ok(Knock::Client(_))), "{knock:?}");
        assert_eq!(answered, [only_version_3_0(&["_pq_.new".into()]), ASK_PASSWORD.to_vec()].concat());
    }

    #[tokio::test]
    async fn nobody_gets_in_without_the_secret() {
        let packet = || startup_packet(PROTOCOL_3, &ASKED);
        for wrong in ["", "S3cret", "s3cre", "s3cret ", "s3crets", &"x".repeat(995)] {
            let (knock, _) = heard(&[packet(), password(wrong)].concat()).await;
            assert!(matches!(&knock, Ok(Knock::Refused(why)) if why.sqlstate == "28P01"), "{wrong:?}: {knock:?}");
        }
        let (knock, _) = heard(&[packet(), password(&"x".repeat(1_000))].concat()).await;
        assert!(matches!(knock, Ok(Knock::Refused(_))), "{knock:?}");
        let (knock, _) = heard(&[packet(), b"Q\0\0\0\x0dselect 1\0".to_vec()].concat()).await;
        assert!(matches!(knock, Ok(Knock::Refused(_))), "{knock:?}");
        let (knock, _) = heard(&packet()).await;
        assert!(knock.is_err(), "{knock:?}");
    }

    #[tokio::test]
    async fn what_is_no_client_is_not_answered() {
        let cancel = [16_u32.to_be_bytes(), CANCEL_REQUEST.to_be_bytes(), [1; 4], [2; 4]].concat();
        let ssl = [8_u32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat();
        for said in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0, 0, 0, 7, 0, 3, 0], &10_001_u32.to_be_bytes(), &cancel] {
            let (knock, answered) = heard(said).await;
            assert!(matches!(knock, Ok(Knock::Nobody)), "{said:?}: {knock:?}");
            assert_eq!(answered, b"");
        }
        let (knock, _) = heard(&[&ssl[..], &ssl, &ssl].concat()).await;
        assert!(matches!(knock, Ok(Knock::Nobody)), "{knock:?}");
        for torn in [&startup_packet(PROTOCOL_3, &ASKED)[..30], &[0, 0]] {
            let (knock, _) = heard(torn).await;
            assert!(matches!(knock, Err(_) | Ok(Knock::Nobody)), "{knock:?}");
        }
        for packet in [startup_packet(2 << 16, &[]), startup_packet(PROTOCOL_3, &["user"])] {
            let (knock, _) = heard(&packet).await;
            assert!(matches!(knock, Ok(Knock::Refused(_))), "{knock:?}");
        }
    }

    #[test]
    fn a_secret_is_random_and_never_shown() {
        let [one, other] = [(); 2].map(|()| Secret::random().expect("random bytes"));
        assert!(one.text().len() == 64 && one.text() != other.text());
        assert!(!format!("{one:?}").contains(one.text()));
    }
}
