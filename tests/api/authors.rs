//! Who made a request: its id, which the answer has too, and the process at the other end of the socket. Runs the API
//! server over a fake controller; needs nothing of the host.

use std::collections::HashSet;
use std::os::unix::net::UnixStream;

use vifswitch::control::author::Author;

use crate::converse;
use support::fake::{Fake, FakeBehaviour, Views};

/// The id in an answer.
fn id(head: &str) -> &str {
    head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap_or_else(|| panic!("no id: {head}"))
}

#[test]
fn each_answer_has_the_id_of_its_request_or_a_generated_one() {
    let fake = Fake::with_views(Views::made_up());
    let answer = |method: &str, path: &str, head: &str| {
        let answer = converse(UnixStream::connect(fake.socket()).unwrap(), method, path, head, "");
        id(&answer.1).to_owned()
    };
    let paths = [("GET", "/v1/ports"), ("GET", "/nowhere"), ("BREW", "/v1/ports"), ("DELETE", "/v1/ports/p1")];
    let generated: HashSet<String> = paths.iter().map(|(method, path)| answer(method, path, "")).collect();
    assert_eq!(generated.len(), paths.len(), "each is unique: {generated:?}");
    for (method, path) in paths {
        assert_eq!(answer(method, path, "X-Request-Id: req-1.a:b/c\r\n"), "req-1.a:b/c");
    }
    let long = format!("X-Request-Id: {}\r\n", "x".repeat(4000));
    assert_eq!(answer("GET", "/v1/ports", &long), "x".repeat(128));
    assert_eq!(answer("GET", "/v1/ports", "X-Request-Id: a \"b\" = c\r\n"), "a__b____c");
    assert!(!answer("GET", "/v1/ports", "X-Request-Id:\r\n").is_empty(), "an empty one is replaced");
}

#[test]
fn a_change_names_the_process_that_connected() {
    let (mind, _received) = FakeBehaviour::willing();
    let authors = mind.authors.clone();
    let fake = Fake::with_behaviour(Views::made_up(), mind);
    let requests = [
        ("DELETE", "/v1/ports/p1"),
        ("POST", "/v1/confirm"),
        ("DELETE", "/v1/confirm"),
        ("POST", "/v1/ports/p1/release"),
    ];
    for (method, path) in requests {
        let answer = converse(UnixStream::connect(fake.socket()).unwrap(), method, path, "X-Request-Id: mine\r\n", "");
        assert_eq!(answer.0, 200, "{answer:?}");
        let author = authors.lock().unwrap().pop().unwrap();
        let uid = Some(rustix::process::geteuid().as_raw());
        assert_eq!(author, Some(Author { uid, pid: Some(std::process::id()), request_id: "mine".into() }), "{path}");
    }
}
