//! Names for nodes, meshes, operations and sessions that cannot be mixed up.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// A node or mesh name breaks the rule `^[a-z0-9][a-z0-9_.-]{0,62}$`.
    #[error("{0:?} is no {1} name: 1 to 63 of a-z, 0-9, '_', '.', '-', beginning with a letter or digit")]
    Name(String, &'static str),
    /// Not a UUID of version 7.
    #[error("{0:?} is no operation id: a UUID of version 7 is expected")]
    Operation(String),
    /// Not a UUID.
    #[error("{0:?} is no session id: a UUID is expected")]
    Session(String),
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 63
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b))
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name with everything but `[a-z0-9_]` turned to `_`: for slot and origin names.
            pub fn sanitized(&self) -> String {
                self.0.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                if is_name(text) { Ok(Self(text.to_owned())) } else { Err(BadId::Name(text.to_owned(), $what)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_id! {
    /// Names one node: a PostgreSQL database and the agent beside it.
    NodeId, "node"
}

name_id! {
    /// Names the trust domain all agents of a mesh share.
    MeshName, "mesh"
}

/// Names one operation. Made by whoever asks for it, so that asking twice starts it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OperationId(Uuid);

impl OperationId {
    /// A new id; later ids sort after earlier ones.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id as a UUID, for the database.
    pub fn uuid(&self) -> Uuid {
        self.0
    }

    /// Twelve hexadecimal digits of the random part, for names of slots and origins.
    ///
    /// The leading digits of a UUIDv7 are a clock: two operations begun together would share them.
    pub fn short(&self) -> String {
        let hex = self.0.simple().to_string();
        hex[hex.len() - 12..].to_owned()
    }
}

impl FromStr for OperationId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        match Uuid::parse_str(text) {
            Ok(id) if id.get_version_num() == 7 => Ok(Self(id)),
            _ => Err(BadId::Operation(text.to_owned())),
        }
    }
}

impl TryFrom<Uuid> for OperationId {
    type Error = BadId;
    fn try_from(id: Uuid) -> Result<Self, BadId> {
        if id.get_version_num() == 7 { Ok(Self(id)) } else { Err(BadId::Operation(id.to_string())) }
    }
}

impl TryFrom<String> for OperationId {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<OperationId> for String {
    fn from(id: OperationId) -> String {
        id.to_string()
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Names what a source holds open for one operation of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new id that nobody can guess.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

impl FromStr for SessionId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        Uuid::parse_str(text).map(Self).map_err(|_| BadId::Session(text.to_owned()))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_what_fits_a_log_a_slot_and_a_certificate() {
        for good in ["a", "node_a", "db-1.eu", "0", &"x".repeat(63)] {
            assert!(good.parse::<NodeId>().is_ok(), "{good} should be a name");
        }
        for bad in ["", "Node", "-a", "_a", "a b", "a/b", "a\n", "é", &"x".repeat(64)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?} should be no name");
        }
    }

    #[test]
    fn two_operations_begun_together_have_different_short_names() {
        assert_ne!(OperationId::generate().short(), OperationId::generate().short());
    }

    #[test]
    fn an_operation_id_is_a_uuid_of_version_seven_and_nothing_else() {
        let id = OperationId::generate();
        assert_eq!(id.to_string().parse::<OperationId>(), Ok(id));
        assert!(Uuid::new_v4().to_string().parse::<OperationId>().is_err());
    }
}
