//! `steepctl pki inspect`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use steep_protocol::{
    failure::{Explain as _, Failure},
    wire::identity::{PeerId, Who},
};

use crate::{
    output::{
        Output,
        exit_code::Exit,
        style::Tone,
        table::{Cell, Facts},
    },
    pki::inspect::{self, Class, Inspected, KeyBeside, Validity},
    units,
};

const EXAMPLES: &str = "\
Examples:
  steepctl pki inspect pki/node_a.pem
  steepctl pki inspect pki/operator-alice.pem -o json | jq .valid";

/// Less than this left is shown as a warning.
const SOON_SECONDS: u64 = 14 * 86_400;

/// Arguments of `pki inspect`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// A certificate in PEM form
    pub file: PathBuf,
}

/// Prints what a certificate file says.
pub fn run(args: &InspectArgs, out: &Output) -> Result<Exit, Failure> {
    let found = inspect::file(&args.file).map_err(|error| error.explain())?;
    let now = Timestamp::now();
    if out.is_json() {
        out.json(&as_json(&found, now))?;
    } else {
        out.data(&facts(&found, now))?;
    }
    Ok(Exit::Success)
}

fn facts(found: &Inspected, now: Timestamp) -> String {
    let mut facts = Facts::default();
    match &found.class {
        Class::Peer(peer) => {
            facts.add("identity", Cell::new(peer.uri()).tone(Tone::Strong));
            facts.add("mesh", peer.mesh.as_str());
            facts.add("class", class_word(&found.class));
            match &peer.who {
                Who::Node(node) => facts.add("node", node.as_str()),
                Who::Operator { role, name } => {
                    facts.add("operator", name);
                    facts.add("role", role.as_str());
                }
            }
        }
        Class::Authority { mesh: Some(mesh), class } => {
            facts.add("mesh", mesh.as_str());
            facts.add("class", format!("authority ({class})"));
        }
        Class::Authority { mesh: None, .. } => facts.add("class", Cell::new("authority, of no mesh").tone(Tone::Warn)),
        Class::Refused(why) => facts.add("class", Cell::new(format!("agents refuse it: {why}")).tone(Tone::Bad)),
    }
    facts.add("subject", &found.subject);
    facts.add("issuer", &found.issuer);
    facts.add("valid", validity(found, now));
    facts.add("key is for", found.purposes.join(", "));
    facts.add("names", found.names.join(", "));
    facts.add("serial", &found.serial);
    facts.add("sha256", &found.fingerprint);
    facts.add("chain", found.chain.join(", "));
    facts.add(
        "key file",
        match &found.key {
            KeyBeside::Missing => Cell::new("none beside it").tone(Tone::Faint),
            KeyBeside::Fits(path) => Cell::new(format!("{} fits", path.display())).tone(Tone::Good),
            KeyBeside::Wrong(path, why) => Cell::new(format!("{} {why}", path.display())).tone(Tone::Bad),
        },
    );
    facts.render()
}

fn validity(found: &Inspected, now: Timestamp) -> Cell {
    let span = format!("{} to {}", units::date_time(found.from), units::date_time(found.until));
    match found.validity_at(now) {
        Validity::Valid { seconds_left } => {
            let left = units::counted(seconds_left / 86_400, "day");
            let tone = if seconds_left < SOON_SECONDS { Tone::Warn } else { Tone::Good };
            Cell::new(format!("{span} ({left} left)")).tone(tone)
        }
        Validity::NotYet { .. } => Cell::new(format!("{span} (NOT YET)")).tone(Tone::Bad),
        Validity::Expired { .. } => Cell::new(format!("{span} (EXPIRED)")).tone(Tone::Bad),
    }
}

fn class_word(class: &Class) -> &'static str {
    match class {
        Class::Peer(PeerId { who: Who::Node(_), .. }) => "node",
        Class::Peer(PeerId { who: Who::Operator { .. }, .. }) => "operator",
        Class::Authority { .. } => "authority",
        Class::Refused(_) => "refused",
    }
}

fn as_json(found: &Inspected, now: Timestamp) -> Value {
    let (mesh, identity, role) = match &found.class {
        Class::Peer(peer) => {
            let role = match &peer.who {
                Who::Operator { role, .. } => Some(role.as_str()),
                Who::Node(_) => None,
            };
            (Some(peer.mesh.as_str()), Some(peer.uri()), role)
        }
        Class::Authority { mesh, .. } => (mesh.as_ref().map(|mesh| mesh.as_str()), None, None),
        Class::Refused(_) => (None, None, None),
    };
    let refused = match &found.class {
        Class::Refused(why) => Some(why),
        _ => None,
    };
    let (key, key_fits) = match &found.key {
        KeyBeside::Missing => (None, None),
        KeyBeside::Fits(path) => (Some(path.display().to_string()), Some(true)),
        KeyBeside::Wrong(path, _) => (Some(path.display().to_string()), Some(false)),
    };
    json!({
        "mesh": mesh,
        "class": class_word(&found.class),
        "identity": identity,
        "role": role,
        "refused": refused,
        "subject": found.subject,
        "issuer": found.issuer,
        "not_before": found.from,
        "not_after": found.until,
        "valid": matches!(found.validity_at(now), Validity::Valid { .. }),
        "purposes": found.purposes,
        "names": found.names,
        "serial": found.serial,
        "sha256": found.fingerprint,
        "chain": found.chain,
        "key": key,
        "key_fits": key_fits,
    })
}
