//! What is wrong with a request: the entity, the key, the value, and the remedy.

/// The entity that a problem is about; of a port, also its VM. Unknown parts are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// The port.
    pub port: Option<String>,
    /// The VM.
    pub vm: Option<String>,
    /// The network.
    pub network: Option<String>,
    /// The uplink.
    pub uplink: Option<String>,
}

impl Subject {
    /// A port.
    pub fn port(id: impl Into<String>) -> Subject {
        Subject { port: Some(id.into()), ..Subject::default() }
    }

    /// A VM.
    pub fn vm(id: impl Into<String>) -> Subject {
        Subject { vm: Some(id.into()), ..Subject::default() }
    }

    /// A network.
    pub fn network(id: impl Into<String>) -> Subject {
        Subject { network: Some(id.into()), ..Subject::default() }
    }

    /// An uplink.
    pub fn uplink(id: impl Into<String>) -> Subject {
        Subject { uplink: Some(id.into()), ..Subject::default() }
    }

    /// Whether no entity is known.
    pub fn is_empty(&self) -> bool {
        *self == Subject::default()
    }
}

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Kind, for programs.
    pub kind: &'static str,
    /// The entity.
    pub subject: Subject,
    /// Path of the key in the request, such as `vms[1].ports[0].mac_address`; empty for the whole request.
    pub key: String,
    /// The value, as text.
    pub value: Option<String>,
    /// Message for people, with the remedy behind a semicolon.
    pub message: String,
}

impl Problem {
    /// A problem of the whole request.
    pub fn new(kind: &'static str, message: impl Into<String>) -> Problem {
        let message = message.into();
        Problem { kind, subject: Subject::default(), key: String::new(), value: None, message }
    }

    /// The same, of this entity.
    pub fn of(self, subject: Subject) -> Problem {
        Problem { subject, ..self }
    }

    /// The same, of this key and value.
    pub fn at(self, key: impl Into<String>, value: Option<String>) -> Problem {
        Problem { key: key.into(), value, ..self }
    }

    /// What would be right.
    pub fn remedy(&self) -> &str {
        remedy(&self.message)
    }
}

/// The remedy in a message: its part behind the first semicolon, outside of quotes, or all of it.
fn remedy(message: &str) -> &str {
    let (mut is_quoted, mut is_escaped, mut is_code) = (false, false, false);
    for (at, c) in message.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' if !is_code => is_quoted = !is_quoted,
            '`' if !is_quoted => is_code = !is_code,
            ';' if !is_quoted && !is_code => {
                let rest = message[at + 1..].trim_start();
                return if rest.is_empty() { message } else { rest };
            }
            _ => {}
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_remedy_follows_the_semicolon() {
        for (message, expected) in [
            ("out of bounds; use 68 to 9216", "use 68 to 9216"),
            ("expected a list, found a text", "expected a list, found a text"),
            (r#"no port "a;b"; use another"#, "use another"),
            (r#"no port "a\";b"; use another"#, "use another"),
            ("`a; b` fails; run `c; d`", "run `c; d`"),
            ("a; b; c", "b; c"),
            ("ends;", "ends;"),
            ("", ""),
        ] {
            assert_eq!(remedy(message), expected);
        }
    }

    proptest! {
        #[test]
        fn a_message_has_a_remedy(message in "[a;\"`\\\\ é]{1,12}") {
            prop_assert!(!remedy(&message).is_empty());
            prop_assert!(message.ends_with(remedy(&message)));
        }
    }
}
