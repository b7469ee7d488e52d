//! `vifswitch history` and `vifswitch rollback`, and their routes, on a running switch over real taps: what is listed, what is
//! restored, who may decide again, and what a restart keeps. Needs root; makes its own namespaces.

use std::os::unix::net::UnixStream;

use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::fake::runtime;
use support::host::Namespace;
use support::host::daemon::{Daemon, Vif, attachment, config, keeping};
use vifswitch::control::api::client::{Client, Error};
use vifswitch::control::state::history::{GenerationView, Source};

/// A switch with a state and two ports of a VM.
fn switch(namespace: &Namespace) -> (Daemon, [Vif; 3]) {
    let vifs = [1, 2, 3].map(|number| Vif::new("fw", number, namespace));
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs[..2]);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    (daemon, vifs)
}

fn history(daemon: &Daemon) -> Vec<GenerationView> {
    let shown = daemon.done(&["history", "--json"], "");
    let history: Vec<GenerationView> = serde_json::from_str(&shown).unwrap();
    assert_eq!(history, daemon.get::<Vec<GenerationView>>("/v1/history"));
    assert!(history.windows(2).all(|pair| pair[0].generation == pair[1].generation + 1), "{history:?}");
    history
}

fn newest(daemon: &Daemon) -> GenerationView {
    history(daemon).remove(0)
}

/// The configuration without `[switch]`.
fn configuration(daemon: &Daemon) -> Value {
    let mut config: Value = daemon.get("/v1/config");
    config.as_object_mut().unwrap().remove("switch");
    config
}

/// The error of a command, which changes nothing and ends with status 1.
fn refused(daemon: &Daemon, arguments: &[&str]) -> String {
    let before = (history(daemon), configuration(daemon));
    let output = daemon.run_command(arguments, "");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    assert_eq!((history(daemon), configuration(daemon)), before, "{arguments:?} changes nothing");
    String::from_utf8(output.stderr).unwrap()
}

/// Sends a request for a rollback.
fn roll_back(daemon: &Daemon, query: &str, body: Value) -> Result<Value, (u16, String, String)> {
    let client = Client::new(daemon.socket());
    match runtime().block_on(client.request(Method::POST, &format!("/v1/rollback{query}"), Some(&body))) {
        Ok(text) => Ok(serde_json::from_str(&text).unwrap()),
        Err(Error::Refused { status, kind, message }) => Err((status, kind, message)),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_history_lists_who_has_changed_what() {
    let Some(namespace) = Namespace::new() else { return };
    let (daemon, vifs) = switch(&namespace);
    let [first] = history(&daemon).try_into().unwrap();
    assert_eq!((first.source, &first.by, first.restorable), (Source::File, &None, true));
    daemon.attach(&vifs[2]);
    daemon.done(&["set", "port-3", "promiscuous=true"], "");
    daemon.configure(&std::fs::read_to_string(daemon.file()).unwrap().replace("mtu = 1500", "mtu = 1400"));
    daemon.signal(Signal::HUP);
    daemon.await_port("the reloaded file", &vifs[0], |_| configuration(&daemon)["networks"][0]["mtu"] == 1400);
    daemon.done(&["rollback", &first.generation.to_string()], "");
    let [rolled_back, reloaded, set, attached, oldest] = history(&daemon).try_into().unwrap();
    assert_eq!(oldest, first);
    let me = rustix::process::geteuid().as_raw();
    for (of, source) in [(&attached, Source::Api), (&set, Source::Api), (&rolled_back, Source::Rollback)] {
        let by = of.by.as_ref().unwrap_or_else(|| panic!("{of:?}"));
        assert_eq!((of.source, by.uid, by.request_id.is_empty()), (source, Some(me), false), "{of:?}");
        assert!(by.pid.is_some_and(|pid| pid != std::process::id()), "the command's: {of:?}");
    }
    assert_eq!((reloaded.source, &reloaded.by), (Source::File, &None));
    let key = |of: &GenerationView| {
        let changes = of.differences.iter();
        changes.map(|of| (of.id.clone(), of.key.clone(), of.before.clone(), of.after.clone())).collect::<Vec<_>>()
    };
    let set_true = ("port-3".to_owned(), Some("promiscuous".to_owned()), json!(false), json!(true));
    let mtu = ("net1".to_owned(), Some("mtu".to_owned()), json!(1500), json!(1400));
    assert_eq!((key(&set), key(&reloaded)), (vec![set_true], vec![mtu]));
    assert_eq!((attached.differences[0].id.as_str(), attached.differences[0].after.is_null()), ("port-3", false));
    assert_eq!(rolled_back.differences.len(), 2, "the port is gone, and the MTU as before: {rolled_back:?}");
    // The same for people.
    let shown = daemon.done(&["history"], "");
    let heads: Vec<&str> = shown.lines().filter(|line| !line.starts_with(' ')).collect();
    for (head, of) in heads.iter().zip([&rolled_back, &reloaded, &set, &attached, &oldest]) {
        let origin = match of.source {
            Source::File => "configuration file",
            Source::Rollback => "rollback",
            _ => "API",
        };
        let author = of
            .by
            .as_ref()
            .map(|by| format!(", uid {} pid {} request {}", by.uid.unwrap(), by.pid.unwrap(), by.request_id));
        let expected = format!("{}  {}  {origin}{}", of.generation, of.time, author.unwrap_or_default());
        assert_eq!(*head, expected);
    }
    assert_eq!(heads.len(), 5, "{shown}");
    assert!(shown.contains("\n    port \"port-3\": promiscuous was false and is true\n"), "{shown}");
}

#[test]
fn a_rollback_restores_exactly_and_is_taken_back_by_another() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut daemon, vifs) = switch(&namespace);
    let mut made = vec![(newest(&daemon).generation, configuration(&daemon))];
    let mut changed = |daemon: &Daemon| made.push((newest(daemon).generation, configuration(daemon)));
    daemon.attach(&vifs[2]);
    changed(&daemon);
    daemon.detach(&vifs[0]);
    changed(&daemon);
    // At the end now: another order than at first.
    daemon.attach(&vifs[0]);
    changed(&daemon);
    daemon.done(&["set", "port-2", "admin_state_up=false"], "");
    changed(&daemon);
    for round in 0..3 {
        // Over a kill too.
        if round == 1 {
            daemon.stop(Signal::KILL);
            daemon.start();
        }
        for (generation, config) in &made {
            assert_eq!(daemon.get::<Value>(&format!("/v1/history/{generation}")), *config, "generation {generation}");
            let before = newest(&daemon).generation;
            let said = daemon.done(&["rollback", &generation.to_string()], "");
            let is_changed = configuration(&daemon) == *config && !said.starts_with("no changes");
            assert_eq!(newest(&daemon).generation, before + u64::from(is_changed), "{said}");
            assert_eq!(configuration(&daemon), *config, "generation {generation}");
            let ports: Vec<String> = config["vms"][0]["ports"]
                .as_array()
                .unwrap()
                .iter()
                .map(|port| port["port_id"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(daemon.listed(), ports);
            let mut taps: Vec<String> = ports.iter().map(|port| port.replace("port-", "tap")).collect();
            taps.sort();
            taps.insert(0, "lo".into());
            assert_eq!(namespace.links(), taps, "its netdevs are there when it is answered, and no others");
            for vif in vifs.iter().filter(|vif| ports.contains(&vif.port)) {
                if configuration(&daemon)["vms"][0]["ports"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|port| port["port_id"] == *vif.port && port["admin_state_up"] == false)
                {
                    daemon.await_down(vif);
                } else {
                    daemon.await_active(vif);
                }
            }
        }
    }
    // Without a number, the one before the newest, and back.
    let (_, last) = made.pop().unwrap();
    let (_, before) = made.pop().unwrap();
    daemon.done(&["set", "port-2", "admin_state_up=true"], "");
    assert_eq!(configuration(&daemon), before);
    for expected in [&last, &before, &last] {
        daemon.done(&["rollback"], "");
        assert_eq!(configuration(&daemon), *expected);
    }
}

#[test]
fn a_rollback_is_a_change_with_conditions() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut daemon, vifs) = switch(&namespace);
    let first = newest(&daemon).generation;
    let error = refused(&daemon, &["rollback"]);
    assert!(error.contains("no earlier generation"), "{error}");
    daemon.attach(&vifs[2]);
    let second = newest(&daemon).generation;
    let (of_first, of_second) = (daemon.get::<Value>(&format!("/v1/history/{first}")), configuration(&daemon));
    // Only said.
    let before = history(&daemon);
    let said = daemon.done(&["rollback", "--dry-run"], "");
    assert_eq!(said, "port \"port-3\" is gone from VM \"fw\"\n");
    let said = roll_back(&daemon, "?dry_run=true", json!({ "generation": first })).unwrap();
    assert_eq!(
        (&said["changes"][0], &said["generation"]),
        (&json!("port \"port-3\" is gone from VM \"fw\""), &json!(second))
    );
    assert_eq!((history(&daemon), configuration(&daemon)), (before, of_second.clone()));
    // To be confirmed: taken back, by a command and by a restart, and confirmed.
    daemon.done(&["rollback", "--confirm", "600"], "");
    assert_eq!(configuration(&daemon), of_first);
    let error = refused(&daemon, &["rollback", &second.to_string()]);
    assert!(error.contains("not confirmed"), "{error}");
    daemon.done(&["confirm", "--cancel"], "");
    assert_eq!(configuration(&daemon), of_second);
    let said = daemon.done(&["rollback", &first.to_string(), "--confirm", "600"], "");
    assert!(said.ends_with("reverts in 600 seconds unless confirmed by `vifswitch confirm`\n"), "{said}");
    daemon.stop(Signal::KILL);
    daemon.start();
    assert_eq!(configuration(&daemon), of_second);
    let sources = |number: usize| history(&daemon).iter().take(number).map(|of| of.source).collect::<Vec<_>>();
    assert_eq!(sources(4), [Source::Revert, Source::Rollback, Source::Revert, Source::Rollback]);
    daemon.done(&["rollback", &first.to_string(), "--confirm", "600"], "");
    daemon.done(&["confirm"], "");
    daemon.stop(Signal::KILL);
    daemon.start();
    assert_eq!((configuration(&daemon), newest(&daemon).source), (of_first.clone(), Source::Rollback));
    // Not what the client has seen.
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let head = format!("POST /v1/rollback HTTP/1.1\r\nHost: x\r\nIf-Match: \"{second}\"\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 412 ") && answer.contains("generation_moved"), "{answer}");
    assert_eq!(configuration(&daemon), of_first);
}

#[test]
fn what_cannot_be_restored_is_refused_with_its_reason() {
    let Some(namespace) = Namespace::new() else { return };
    let (daemon, vifs) = switch(&namespace);
    let first = newest(&daemon).generation;
    // More than are kept.
    for number in 0..32 {
        daemon.done(&["set", "port-1", &format!("promiscuous={}", number % 2 == 0)], "");
    }
    let listed = history(&daemon);
    assert_eq!((listed.len(), listed[31].generation), (32, first + 1));
    let error = refused(&daemon, &["rollback", &first.to_string()]);
    assert!(
        error.contains(&format!("generation {first} is not recorded"))
            && error.contains(&format!("from {} to {}", first + 1, first + 32)),
        "{error}"
    );
    let wrong = [
        ("", json!({ "generation": 999_999_999 }), 404, "unknown_generation"),
        ("", json!({ "generation": "x" }), 400, "bad_value"),
        ("", json!({ "number": 1 }), 400, "bad_value"),
        ("", json!([1]), 400, "bad_value"),
        ("?owner=me", json!({}), 400, "bad_query"),
        ("?confirm=0", json!({}), 400, "bad_query"),
        ("?confirm=86401", json!({}), 400, "bad_query"),
        ("?when=now", json!({}), 400, "bad_query"),
    ];
    for (query, body, status, kind) in wrong {
        let error = roll_back(&daemon, query, body.clone()).unwrap_err();
        assert_eq!((error.0, error.1.as_str()), (status, kind), "{query} {body}: {}", error.2);
    }
    for path in ["/v1/history/0", "/v1/history/x", "/v1/history/18446744073709551616"] {
        let error = runtime().block_on(Client::new(daemon.socket()).get_json(path)).unwrap_err();
        assert!(
            matches!(&error, Error::Refused { status: 404, kind, .. } if kind == "unknown_generation"),
            "{path}: {error:?}"
        );
    }
    assert_eq!(history(&daemon), listed, "nothing has changed");
    // A port that is attached since is no conflict: what is not in the restored configuration goes.
    let usage = daemon.run_command(&["rollback", "x"], &attachment(&vifs[2]));
    assert_eq!(usage.status.code(), Some(2));
}

/// The file is what was applied last: it does not restore at a restart what a rollback has removed.
#[test]
fn a_rollback_stays_over_a_restart_with_the_same_file() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut daemon, vifs) = switch(&namespace);
    let first = newest(&daemon).generation;
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.signal(Signal::HUP);
    daemon.await_port("the third port", &vifs[0], |_| daemon.listed().len() == 3);
    daemon.done(&["rollback", &first.to_string()], "");
    assert_eq!(daemon.listed(), ["port-1", "port-2"]);
    for signal in [Signal::TERM, Signal::KILL] {
        daemon.stop(signal);
        daemon.start();
        assert_eq!(daemon.listed(), ["port-1", "port-2"], "{signal:?}");
    }
    // An edit of another place does not either.
    daemon.configure(&keeping(&text, &daemon.state()).replace("mtu = 1500", "mtu = 1400"));
    daemon.signal(Signal::HUP);
    daemon.await_port("the edit", &vifs[0], |_| configuration(&daemon)["networks"][0]["mtu"] == 1400);
    assert_eq!(daemon.listed(), ["port-1", "port-2"]);
}
