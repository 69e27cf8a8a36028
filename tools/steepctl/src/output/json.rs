//! Data as JSON: the protocol's messages field by field, under the names the .proto files give them.
//!
//! Every field is always there: what is absent is `null`. Numbers are numbers, moments are RFC 3339 text.
//! The one exception is `system_identifier`, an identifier of more digits than JSON readers keep: text.

use std::sync::OnceLock;

use jiff::Timestamp;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, ReflectMessage as _, Value as Field, prost::Message,
};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use steep_protocol::{failure::Failure, v1};

use super::Output;

impl Output {
    /// Prints a value of ours as one indented object.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        self.data(&serde_json::to_string_pretty(value).expect("our own values have text keys"))
    }

    /// Prints a value of ours on one line.
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        self.data(&serde_json::to_string(value).expect("our own values have text keys"))
    }
}

/// A message of the protocol that can be written as JSON.
#[derive(Debug)]
pub struct Reflected(DynamicMessage);

/// `message`, whose name in package `steep.v1` is `name`.
pub fn message(name: &str, message: &impl Message) -> Reflected {
    let descriptor =
        pool().get_message_by_name(&format!("steep.v1.{name}")).expect("every message is in the descriptors built in");
    let mut reflected = DynamicMessage::new(descriptor);
    reflected.transcode_from(message).expect("a message reads back as its own kind");
    Reflected(reflected)
}

fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(v1::DESCRIPTORS).expect("the descriptors were made by our own build"))
}

impl Serialize for Reflected {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Borrowed(&self.0).serialize(serializer)
    }
}

struct Borrowed<'a>(&'a DynamicMessage);

impl Serialize for Borrowed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let descriptor = self.0.descriptor();
        if descriptor.full_name() == "google.protobuf.Timestamp" {
            return moment(self.0).serialize(serializer);
        }
        let mut map = serializer.serialize_map(None)?;
        for field in descriptor.fields() {
            if field.supports_presence() && !self.0.has_field(&field) {
                map.serialize_entry(field.name(), &None::<()>)?;
            } else {
                map.serialize_entry(field.name(), &Value { field: &field, value: &self.0.get_field(&field) })?;
            }
        }
        map.end()
    }
}

/// RFC 3339 text; nothing for a moment out of range.
fn moment(message: &DynamicMessage) -> Option<String> {
    let seconds = message.get_field_by_name("seconds")?.as_i64()?;
    let nanos = message.get_field_by_name("nanos")?.as_i32()?;
    Timestamp::new(seconds, nanos).ok().map(|at| at.to_string())
}

struct Value<'a> {
    field: &'a FieldDescriptor,
    value: &'a Field,
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Field::Bool(value) => serializer.serialize_bool(*value),
            Field::I32(value) => serializer.serialize_i32(*value),
            Field::I64(value) => serializer.serialize_i64(*value),
            Field::U32(value) => serializer.serialize_u32(*value),
            Field::U64(value) if self.field.name() == "system_identifier" => serializer.collect_str(value),
            Field::U64(value) => serializer.serialize_u64(*value),
            Field::F32(value) => serializer.serialize_f32(*value),
            Field::F64(value) => serializer.serialize_f64(*value),
            Field::String(value) => serializer.serialize_str(value),
            Field::Message(message) => Borrowed(message).serialize(serializer),
            Field::List(values) => {
                serializer.collect_seq(values.iter().map(|value| Value { field: self.field, value }))
            }
            Field::Bytes(_) | Field::EnumNumber(_) | Field::Map(_) => {
                unreachable!("no message shown to operators has bytes, enums or maps")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(reflected: &Reflected) -> serde_json::Value {
        serde_json::to_value(reflected).expect("JSON")
    }

    #[test]
    fn fields_bear_the_names_of_the_proto_and_what_is_absent_is_null() {
        let headline = v1::NodeHeadline {
            node_id: "node_a".into(),
            percent: Some(78.4),
            as_of: Some(prost_types::Timestamp { seconds: 0, nanos: 500_000_000 }),
            ..Default::default()
        };
        let json = written(&message("NodeHeadline", &headline));
        assert_eq!(json["node_id"], "node_a");
        assert_eq!(json["percent"], 78.4);
        assert_eq!(json["eta_seconds"], json!(null));
        assert_eq!(json["state"], "");
        assert_eq!(json["as_of"], "1970-01-01T00:00:00.5Z");
    }

    #[test]
    fn numbers_are_numbers_but_a_system_identifier_keeps_all_its_digits() {
        let reply = v1::GetNodeReply { system_identifier: 7_710_788_945_299_280_709, ..Default::default() };
        assert_eq!(written(&message("GetNodeReply", &reply))["system_identifier"], "7710788945299280709");
        let progress = v1::Progress { bytes_expected: 194_347_270_144, ..Default::default() };
        assert_eq!(written(&message("Progress", &progress))["bytes_expected"], 194_347_270_144_u64);
    }

    #[test]
    fn an_event_holds_the_one_thing_that_happened() {
        let milestone = v1::Milestone { event: "init.started".into(), ..Default::default() };
        let event = v1::OperationEvent {
            cursor: 7,
            what: Some(v1::operation_event::What::Milestone(milestone)),
            ..Default::default()
        };
        let json = written(&message("OperationEvent", &event));
        assert_eq!(json["cursor"], 7);
        assert_eq!(json["milestone"]["event"], "init.started");
        assert_eq!(json["progress"], json!(null));
        assert_eq!(json["ended"], json!(null));
    }

    #[test]
    fn every_message_steepctl_shows_is_in_the_descriptors() {
        for name in [
            "ListNodesReply",
            "GetNodeReply",
            "StartNodeReply",
            "ListOperationsReply",
            "GetOperationReply",
            "ListMembersReply",
            "MatrixReply",
            "PingReply",
            "JoinReply",
            "LeaveReply",
            "ForgetReply",
            "CaptureSchemaReply",
            "CompareSchemasReply",
            "PlanSchemaReply",
            "SyncSchemaReply",
            "SchemaEnvironment",
            "TableSchema",
            "ObjectSchema",
            "SchemaHistoryReply",
            "ListSlotsReply",
            "DropSlotReply",
            "CheckSequencesReply",
            "SyncSequencesReply",
        ] {
            assert!(pool().get_message_by_name(&format!("steep.v1.{name}")).is_some(), "{name}");
        }
    }
}
