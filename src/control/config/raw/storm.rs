//! `storm` of networks, VMs, ports and uplinks as written: a word, or a table of classes, each of which is a word or a
//! table as well.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::diagnostics::{Diagnostics, Path};
use super::super::parse::{Node, Value};
use super::{Read, reject_unknown_key, wrong};

/// A word or a table.
macro_rules! word_or_table {
    ($(#[$about:meta])* $name:ident($table:ident), $wanted:literal) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
        #[serde(untagged)]
        #[allow(clippy::large_enum_variant)] // there are few at a time
        pub enum $name {
            /// `off`.
            Word(String),
            /// What is allowed.
            Table($table),
        }

        impl Read for $name {
            fn read(node: &Node, path: &Path, diagnostics: &mut Diagnostics<'_>) -> Option<$name> {
                match &node.value {
                    Value::Text(text) => Some($name::Word(text.clone())),
                    Value::Table(_) => $table::read(node, path, diagnostics).map($name::Table),
                    _ => {
                        wrong(node, path, diagnostics, $wanted);
                        None
                    }
                }
            }
        }
    };
}

word_or_table! {
    /// `storm`: limits of flooded frames, by class; or `off`: no limits.
    Storm(StormClasses), "\"off\" or a table of classes"
}

word_or_table! {
    /// What may be sent of one class; or `off`: anything.
    StormClass(StormLimit), "\"off\" or a table as { pps = 500, burst = 500 }"
}

word_or_table! {
    /// How many copies may be made of all that; or `off`: any number.
    StormCopies(CopiesLimit), "\"off\" or a table as { pps = 100000, burst = 10000 }"
}

table! {
    /// The classes of `storm`. One that is not written is as it is elsewhere.
    StormClasses {
        /// To ff:ff:ff:ff:ff:ff.
        broadcast: StormClass,
        /// To any other group.
        multicast: StormClass,
        /// To unknown stations.
        unknown_unicast: StormClass,
        /// Copies that a VM causes on a network by all of that. Not of ports.
        copies: StormCopies,
    }
    later {}
}

table! {
    /// A limit on one class: `pps`, `bps`, or both.
    StormLimit {
        /// Frames a second.
        pps: i64,
        /// Frames at once; by default as many as in a second.
        burst: i64,
        /// Bits a second, without frame check sequence.
        bps: i64,
        /// Bytes at once; by default as many as in a second, and the longest frame at least.
        burst_bytes: i64,
        /// What is done beside dropping: `drop`, `drop+event` or `disable`.
        action: String,
        /// Seconds after which a port is opened again that was disabled; 0: when it is released by hand.
        recovery_seconds: i64,
    }
    later {}
}

table! {
    /// A limit on copies.
    CopiesLimit {
        /// Copies a second.
        pps: i64,
        /// Copies at once; by default as many as in a second.
        burst: i64,
    }
    later {}
}
