//! The command line, from the outside: what it prints, where, and how it ends.
#![allow(missing_docs, clippy::unwrap_used)]

mod fake;

use std::io::pipe;
use std::process::{Command, Output};

use fake::{Fake, ODD, Views};
use serde_json::Value;
use vifswitch::control::view::BetweenView;

fn vifswitch() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vifswitch"))
}

fn run(arguments: &[&str]) -> Output {
    vifswitch().args(arguments).output().unwrap()
}

fn show(fake: &Fake, arguments: &[&str]) -> Output {
    vifswitch().arg("show").args(arguments).arg("--socket").arg(fake.socket()).output().unwrap()
}

fn out(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn it_says_what_it_can_do() {
    for arguments in [&[][..], &["--help"], &["help"]] {
        let text = out(&run(arguments));
        for word in ["run", "check", "show", "Exit codes"] {
            assert!(text.contains(word), "{arguments:?}: {text}");
        }
    }
    assert!(out(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [&["frobnicate"][..], &["show", "everything"], &["check"], &["run", "--confg", "x"]] {
        assert!(err(&run(arguments), 2).contains("--help"), "{arguments:?}");
    }
}

#[test]
fn no_switch_is_3() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    for json in [&[][..], &["--json"]] {
        let output = vifswitch().arg("show").args(json).arg("--socket").arg(&socket).output().unwrap();
        let text = err(&output, 3);
        assert!(text.contains(socket.to_str().unwrap()), "which socket: {text}");
        assert!(text.contains("vifswitch run") && text.contains("--socket"), "what to do: {text}");
    }
}

#[test]
fn what_the_switch_refuses_is_1() {
    let text = err(&show(&Fake::closing(), &[]), 1);
    assert_eq!(text, "vifswitch: the switch is shutting down\n");
}

#[test]
fn json_is_what_the_api_says() {
    let views = Views::made_up();
    let fake = Fake::showing(views.clone());
    let said = |what: &str| serde_json::from_str::<Value>(&out(&show(&fake, &[what, "--json"]))).unwrap();
    assert_eq!(said("ports"), serde_json::to_value(&views.ports).unwrap());
    assert_eq!(said("vms"), serde_json::to_value(&views.vms).unwrap());
    assert_eq!(said("networks"), serde_json::to_value(&views.networks).unwrap());
    assert_eq!(said("fdb"), serde_json::to_value(&views.fdb).unwrap());
    assert_eq!(said("workers"), serde_json::to_value(&views.workers).unwrap());
    assert_eq!(said("drops"), serde_json::to_value(&views.drops).unwrap());
}

/// The words of each line of a table.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn tables_are_for_reading() {
    let fake = Fake::showing(Views::made_up());
    let text = out(&show(&fake, &[]));
    assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    let lines = words(&text);
    let titles = ["VM", "#", "PORT", "NETWORK", "MAC", "DEVICE", "STATUS", "WORKER", "RX", "TX", "DROPS", "REASON"];
    assert_eq!(lines[0], titles);
    assert_eq!(lines[1][..7], ["fw-3", "0", "p1", "net1", "02:00:00:00:01:0a", "tap0@fw-3", "ACTIVE"]);
    assert_eq!(lines[1][7..], ["0", "1.2", "MB", "980", "B", "2"]);
    assert_eq!(lines[2][6..8], ["DOWN", "-"]);
    assert!(text.ends_with("no such namespace\n"), "{text}");

    let text = out(&show(&fake, &["fdb"]));
    let lines = words(&text);
    assert_eq!(lines[0], ["NETWORK", "MAC", "PORT", "VM", "KIND", "AGE"]);
    assert_eq!(lines[1], ["net1", "02:00:00:00:01:0a", "p1", "fw-3", "pinned", "-"]);
    assert_eq!(lines[2], ["net1", "02:00:00:00:01:0a", ODD, "web", "learned", "1m", "5s"]);

    let text = out(&show(&fake, &["drops"]));
    let lines = words(&text);
    assert_eq!(lines[0], ["PORT", "VM", "DIRECTION", "REASON", "FRAMES", "MEANING"]);
    assert_eq!(lines[1][..6], [ODD, "web", "in", "spoofed_source", "2", "port"]);

    for what in ["vms", "networks", "workers"] {
        assert!(words(&out(&show(&fake, &[what]))).len() > 1, "{what}");
    }
}

#[test]
fn an_empty_table_says_so() {
    let fake = Fake::showing(Views::default());
    for (what, text) in [
        ("ports", "no ports\n"),
        ("vms", "no VMs\n"),
        ("networks", "no networks\n"),
        ("fdb", "no stations\n"),
        ("workers", "no workers\n"),
        ("drops", "no drops\n"),
    ] {
        assert_eq!(out(&show(&fake, &[what])), text);
        assert_eq!(out(&show(&fake, &[what, "--json"])), "[]\n");
    }
}

#[test]
fn a_reader_who_has_gone_is_no_error() {
    let fake = Fake::showing(Views::made_up());
    let socket = fake.socket();
    let show = ["show", "--socket", socket.to_str().unwrap()];
    for arguments in [&[][..], &["--help"], &show] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = vifswitch().args(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let status = vifswitch().args(["show", "--socket", "/nowhere"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

#[test]
fn books_that_balance_are_shown_and_are_0() {
    let views = Views::made_up();
    let fake = Fake::showing(views.clone());
    let text = out(&show(&fake, &["drops", "--verify"]));
    let lines = words(&text);
    assert_eq!(lines[1], [ODD, "web", "12", "8", "2", "2", "0"]);
    assert!(lines.contains(&vec!["0", "8", "6", "0", "13", "1", "0", "0"]), "{text}");
    assert!(text.contains("spoofed_source") && text.ends_with("adds up: every frame is accounted for\n"), "{text}");
    let said: Value = serde_json::from_str(&out(&show(&fake, &["drops", "--verify", "--json"]))).unwrap();
    assert_eq!(said, serde_json::to_value(&views.audit).unwrap());
}

#[test]
fn books_that_do_not_balance_are_1() {
    let mut views = Views::made_up();
    views.audit.adds_up = false;
    views.audit.ports[0].off = 3;
    views.audit.workers[0].off = -1;
    views.audit.frames_between = BetweenView { least: 2, most: 2 };
    let fake = Fake::showing(views);
    let output = show(&fake, &["drops", "--verify"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for piece in [
        "DOES NOT ADD UP",
        "port \"a\\\"b\\\\c\": 3 unaccounted for of the frames that came in",
        "worker 0: 1 too many are accounted for of the frames that were to go out",
        "between workers: 2 frames were sent and never heard",
    ] {
        assert!(text.contains(piece), "{piece}: {text}");
    }
    assert_eq!(show(&fake, &["drops", "--verify", "--json"]).status.code(), Some(1));
}

#[test]
fn only_the_ledger_is_verified() {
    let text = err(&run(&["show", "ports", "--verify"]), 2);
    assert!(text.contains("show drops") && text.contains("--help"), "{text}");
}
