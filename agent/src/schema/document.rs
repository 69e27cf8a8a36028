//! Reads the JSON documents of a catalog, and says where one is not as it should be.
//!
//! Keys and trailing elements nobody here knows are passed over: a newer agent may have written them. The fingerprints
//! beside the documents still tell that something differs.

use serde_json::Value;
use steep_protocol::names::escape_controls;

/// A document that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{of}: {at} is {found}, {expected} is expected")]
pub struct BadDocument {
    /// Whose document: "table public.orders".
    pub of: String,
    /// Where in it: `columns[3][1]`.
    pub at: String,
    /// What stands there.
    pub found: String,
    /// What should.
    pub expected: &'static str,
}

/// A value within a document, and the way to it.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    of: &'a str,
    at: String,
    value: &'a Value,
}

static NOTHING: Value = Value::Null;

impl<'a> Place<'a> {
    /// The whole document called `name`, of the thing `of`.
    pub(super) fn whole(of: &'a str, name: &str, value: &'a Value) -> Self {
        Self { of, at: name.to_owned(), value }
    }

    /// A key of an object, or of nothing, which has none.
    pub(super) fn key(&self, key: &str) -> Result<Place<'a>, BadDocument> {
        let value = match self.value {
            Value::Object(map) => map.get(key).unwrap_or(&NOTHING),
            _ => return Err(self.bad("an object")),
        };
        Ok(Place { of: self.of, at: format!("{}.{key}", self.at), value })
    }

    /// An element of an array; one that is not there is null.
    pub(super) fn nth(&self, index: usize) -> Result<Place<'a>, BadDocument> {
        let Value::Array(items) = self.value else { return Err(self.bad("an array")) };
        let value = items.get(index).unwrap_or(&NOTHING);
        Ok(Place { of: self.of, at: format!("{}[{index}]", self.at), value })
    }

    /// Every element, read by `one`; null is no elements.
    pub(super) fn each<T>(&self, one: impl Fn(&Place<'a>) -> Result<T, BadDocument>) -> Result<Vec<T>, BadDocument> {
        match self.value {
            Value::Null => Ok(Vec::new()),
            Value::Array(items) => (0..items.len()).map(|index| one(&self.nth(index)?)).collect(),
            _ => Err(self.bad("an array")),
        }
    }

    /// An object or array or text, read by `one`; null is none.
    pub(super) fn maybe<T>(
        &self,
        one: impl Fn(&Place<'a>) -> Result<T, BadDocument>,
    ) -> Result<Option<T>, BadDocument> {
        if self.value.is_null() { Ok(None) } else { one(self).map(Some) }
    }

    pub(super) fn is_array(&self) -> bool {
        self.value.is_array()
    }

    pub(super) fn text(&self) -> Result<String, BadDocument> {
        self.value.as_str().map(str::to_owned).ok_or_else(|| self.bad("a text"))
    }

    pub(super) fn optional_text(&self) -> Result<Option<String>, BadDocument> {
        self.maybe(Place::text)
    }

    /// true or false, also as text, which is how PostgreSQL writes one inside some documents.
    pub(super) fn truth(&self) -> Result<bool, BadDocument> {
        match self.value {
            Value::Bool(truth) => Ok(*truth),
            Value::String(text) if text == "true" || text == "t" => Ok(true),
            Value::String(text) if text == "false" || text == "f" => Ok(false),
            _ => Err(self.bad("true or false")),
        }
    }

    /// A whole number, also as text: a sequence's bounds may be beyond what JSON's readers keep.
    pub(super) fn number(&self) -> Result<i64, BadDocument> {
        let number = match self.value {
            Value::String(text) => text.parse().ok(),
            value => value.as_i64(),
        };
        number.ok_or_else(|| self.bad("a whole number"))
    }

    pub(super) fn bad(&self, expected: &'static str) -> BadDocument {
        let found = match self.value {
            Value::Null => "missing".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            Value::Array(_) => "an array".to_owned(),
            scalar => escape_controls(&scalar.to_string()).chars().take(60).collect(),
        };
        BadDocument { of: self.of.to_owned(), at: self.at.clone(), found, expected }
    }
}
