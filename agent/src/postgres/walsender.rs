//! Opens a walsender session and hands out its bytes, from behind AuthenticationOk on.
//!
//! The client library keeps a connection's bytes to itself; a replication link needs just them. So the start-up is done
//! here, with the library's own messages and authentication, and with the agent's own role and password.

use std::io;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{
        backend::{ErrorResponseBody, Message},
        frontend,
    },
};
use steep_protocol::failure::Code;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    connect::{CONNECT_TIMEOUT, Database, PINS},
    ddl,
    error::{Error, Refusal, passes_by_itself},
    passfile,
    replication::{Duplex, dial},
};

/// Settings a subscriber's PostgreSQL may choose in `options`: how values are written. Every other one is ours.
const CHOSEN: [&str; 3] = ["datestyle", "intervalstyle", "extra_float_digits"];

/// How a walsender session is to be opened, in the words of a start-up packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    application_name: String,
    client_encoding: String,
    chosen: Vec<(&'static str, String)>,
}

impl Opening {
    /// Takes what a subscriber's PostgreSQL asked for; fails with a reason when that is more than a subscription's
    /// walreceiver asks for.
    pub fn asked_for(application_name: &str, client_encoding: &str, options: &str) -> Result<Self, String> {
        let is_plain = |text: &str, most: usize| {
            text.len() <= most && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" _.-".contains(&b))
        };
        if !is_plain(application_name, 63) {
            return Err(format!("{application_name:?} is no application_name"));
        }
        if !is_plain(client_encoding, 32) {
            return Err(format!("{client_encoding:?} is no client_encoding"));
        }
        let client_encoding = if client_encoding.is_empty() { "UTF8" } else { client_encoding };
        let (application_name, client_encoding) = (application_name.to_owned(), client_encoding.to_owned());
        Ok(Self { application_name, client_encoding, chosen: chosen(options)? })
    }

    fn options(&self) -> String {
        let is_chosen = |name: &str| self.chosen.iter().any(|(chosen, _)| chosen.eq_ignore_ascii_case(name));
        let pinned = PINS.iter().copied().filter(|(name, _)| *name != "client_encoding" && !is_chosen(name));
        let chosen = self.chosen.iter().map(|(name, value)| (*name, value.as_str()));
        ddl::startup_options(&pinned.chain(chosen).collect::<Vec<_>>())
    }
}

/// Reads `-c name=value -c name=value`. What we pin is left out: it is pinned anyway, to our own values.
fn chosen(options: &str) -> Result<Vec<(&'static str, String)>, String> {
    let mut chosen = Vec::new();
    let mut words = options_words(options).into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next(),
            Some(joined) => Some(joined.to_owned()),
            None => None,
        };
        let setting = setting.ok_or_else(|| format!("{word:?} is no setting"))?;
        let (name, value) = setting.split_once('=').ok_or_else(|| format!("{setting:?} has no value"))?;
        if let Some(known) = CHOSEN.iter().find(|known| known.eq_ignore_ascii_case(name)) {
            if value.len() > 32 || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-, ".contains(&b)) {
                return Err(format!("{value:?} is no value for {known}"));
            }
            chosen.push((*known, value.to_owned()));
        } else if !PINS.iter().any(|(pinned, _)| pinned.eq_ignore_ascii_case(name)) {
            return Err(format!("{name:?} may not be set through a link"));
        }
    }
    Ok(chosen)
}

/// Words as PostgreSQL cuts options: at blanks, unless a backslash stands before one.
fn options_words(options: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => words.last_mut().expect("there is always one").extend(chars.next()),
            c if c.is_ascii_whitespace() => words.push(String::new()),
            c => words.last_mut().expect("there is always one").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A walsender session that is logged in and has not been asked anything.
pub struct Walsender {
    /// The connection.
    pub stream: Box<dyn Duplex>,
    /// What the server has said already, behind AuthenticationOk.
    pub said: BytesMut,
}

/// Opens a walsender session for logical replication on our database, under our role.
///
/// Fails like [`Database::session`], and with [`Error::Denied`] where the role may not replicate or no walsender is
/// free. Dropping the future, or what it returns, closes the connection.
pub async fn open(database: &Database, opening: &Opening) -> Result<Walsender, Error> {
    let opened = timeout(CONNECT_TIMEOUT, log_in(database, opening)).await;
    opened.map_err(|elapsed| database.unreachable(elapsed))?
}

async fn log_in(database: &Database, opening: &Opening) -> Result<Walsender, Error> {
    let config = database.config();
    let lost = |source: io::Error| database.unreachable(source);
    let mut stream = dial(config).await.map_err(lost)?;
    let options = opening.options();
    let parameters = [
        ("user", config.user.as_str()),
        ("database", config.dbname.as_str()),
        ("replication", "database"),
        ("application_name", opening.application_name.as_str()),
        ("client_encoding", opening.client_encoding.as_str()),
        ("options", options.as_str()),
    ];
    let mut say = BytesMut::new();
    frontend::startup_message(parameters, &mut say).map_err(lost)?;
    let mut said = BytesMut::new();
    let mut scram = None;
    loop {
        stream.write_all(&say.split()).await.map_err(lost)?;
        match next_message(&mut stream, &mut said).await.map_err(lost)? {
            Message::AuthenticationOk => return Ok(Walsender { stream, said }),
            Message::AuthenticationCleartextPassword => {
                frontend::password_message(&password(database)?, &mut say).map_err(lost)?;
            }
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(config.user.as_bytes(), &password(database)?, body.salt());
                frontend::password_message(hash.as_bytes(), &mut say).map_err(lost)?;
            }
            Message::AuthenticationSasl(body) => {
                let offers = body.mechanisms().any(|offered| Ok(offered == SCRAM_SHA_256)).map_err(lost)?;
                if !offers {
                    return Err(refused(database, "it offers no way to log in that is known here".into()));
                }
                let begun = ScramSha256::new(&password(database)?, ChannelBinding::unsupported());
                frontend::sasl_initial_response(SCRAM_SHA_256, begun.message(), &mut say).map_err(lost)?;
                scram = Some(begun);
            }
            Message::AuthenticationSaslContinue(body) => {
                let scram = scram.as_mut().ok_or_else(|| lost(io::ErrorKind::InvalidData.into()))?;
                scram.update(body.data()).map_err(|error| refused(database, error.into()))?;
                frontend::sasl_response(scram.message(), &mut say).map_err(lost)?;
            }
            Message::AuthenticationSaslFinal(body) => {
                let scram = scram.as_mut().ok_or_else(|| lost(io::ErrorKind::InvalidData.into()))?;
                scram.finish(body.data()).map_err(|error| refused(database, error.into()))?;
            }
            Message::ErrorResponse(body) => return Err(not_a_walsender(database, refusal(&body).map_err(lost)?)),
            Message::NoticeResponse(_) => {}
            _ => return Err(refused(database, "it offers no way to log in that is known here".into())),
        }
    }
}

async fn next_message(stream: &mut Box<dyn Duplex>, said: &mut BytesMut) -> io::Result<Message> {
    loop {
        if let Some(message) = Message::parse(said)? {
            return Ok(message);
        }
        if stream.read_buf(said).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn password(database: &Database) -> Result<Vec<u8>, Error> {
    let config = database.config();
    let found = match &config.passfile {
        Some(path) => passfile::password_for(path, config)?,
        None => None,
    };
    let missing = || refused(database, "it asks for a password, and postgres.passfile has none".into());
    found.map(String::into_bytes).ok_or_else(missing)
}

fn refused(database: &Database, source: super::error::Cause) -> Error {
    let config = database.config();
    Error::Refused { address: config.address(), user: config.user.clone(), dbname: config.dbname.clone(), source }
}

fn refusal(body: &ErrorResponseBody) -> io::Result<Refusal> {
    let mut refusal = Refusal {
        sqlstate: String::new(),
        message: String::new(),
        detail: None,
        hint: None,
        context: None,
        is_fatal: true,
    };
    let mut fields = body.fields();
    while let Some(field) = fields.next()? {
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => refusal.sqlstate = text,
            b'M' => refusal.message = text,
            b'D' => refusal.detail = Some(text),
            b'H' => refusal.hint = Some(text),
            _ => {}
        }
    }
    Ok(refusal)
}

fn not_a_walsender(database: &Database, refusal: Refusal) -> Error {
    let code = match refusal.sqlstate.as_str() {
        "53300" => Code::NoFreeWalSender,
        "42501" => Code::ReplicationPrivilege,
        state if passes_by_itself(state) => return database.unreachable(refusal),
        _ => return refused(database, refusal.into()),
    };
    Error::Denied { doing: "open a replication connection".to_owned(), code, source: Box::new(refusal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_walreceiver_asks_for_is_taken_and_everything_else_is_pinned() {
        let options = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3";
        let opening = Opening::asked_for("steep_from_node_a", "UTF8", options).expect("a walreceiver's");
        let options = opening.options();
        assert!(options.ends_with(" -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3"), "{options}");
        assert!(options.contains("-c row_security=off") && !options.contains("DateStyle"), "{options}");
        // A subscription's own connection string has all that we pin.
        let pinned = ddl::startup_options(PINS);
        let opening = Opening::asked_for("x", "UTF8", &pinned).expect("what we pin");
        assert_eq!(opening.options().matches(" -c ").count() + 1, PINS.len() - 1, "{}", opening.options());
    }

    #[test]
    fn a_setting_that_does_more_than_write_values_is_refused() {
        for options in [
            "-c session_preload_libraries=/tmp/x.so",
            "-csession_preload_libraries=x",
            "-c datestyle=ISO\\ -c\\ session_preload_libraries=x;",
            "--log_statement=none",
            "-P",
            "-c",
            "-c datestyle",
            "x",
        ] {
            assert!(Opening::asked_for("x", "UTF8", options).is_err(), "{options}");
        }
        assert!(Opening::asked_for("x'; drop", "UTF8", "").is_err());
        assert!(Opening::asked_for("x", "UTF8\0", "").is_err());
    }

    #[test]
    fn a_pinned_setting_cannot_be_changed() {
        let opening = Opening::asked_for("x", "UTF8", "-c standard_conforming_strings=off").expect("left out");
        assert!(opening.options().contains("standard_conforming_strings=on"));
        assert!(!opening.options().contains("standard_conforming_strings=off"));
    }
}
