//! The levels of the log, read and changed.

use serde_json::json;
use support::fake::{Fake, Views};

use super::{ask_with, request};

#[test]
fn the_level_of_the_log_is_shown_and_changed() {
    let fake = Fake::with_views(Views::made_up());
    let level = || request(&fake, "GET", "/v1/log").json()["level"].clone();
    assert_eq!(request(&fake, "GET", "/v1/log").json()["format"], "text");
    assert_eq!(level(), "info");
    for text in ["debug", "warn,vifswitch::control::api=trace", "off"] {
        let answer = ask_with(&fake, "PUT", "/v1/log", &json!({ "level": text }).to_string());
        assert_eq!((answer.0, &answer.json()["level"]), (200, &json!(text)));
        assert_eq!(level(), text);
    }
    for (body, kind, why) in [
        (r#"{"level":"loud"}"#, "bad_value", "body: level: invalid level \\\"loud\\\"; use off, error"),
        (r#"{"level":"api=info"}"#, "bad_value", "begin with vifswitch"),
        (r#"{"level":7}"#, "bad_value", "body: "),
        (r#"{"lebel":"info"}"#, "bad_value", "lebel"),
        ("{}", "bad_value", "level"),
        ("", "syntax", "body: "),
    ] {
        let answer = ask_with(&fake, "PUT", "/v1/log", body);
        assert_eq!((answer.0, answer.kind().as_str()), (400, kind), "{body}");
        assert!(answer.2.contains(why), "{body}: {answer:?}");
    }
    assert_eq!(level(), "off", "what is refused changes nothing");
}
