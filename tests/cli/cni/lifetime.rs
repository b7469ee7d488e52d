//! Ports that the CNI plugin attaches end with the network namespace of their container, and ADD succeeds in the next one.

use support::host::Inhabitant;
use vifswitch::control::state::events::EventKind;

use super::*;

/// Both modes: keys of the network configuration, and the kind of the port's device.
fn modes() -> [(&'static str, Value, &'static str); 2] {
    [("blue", json!({}), "tap"), ("green", json!({ "mode": "vm" }), "packet")]
}

/// Ports that have ended with their namespaces, as events have reported it.
fn ended(host: &Host) -> Vec<String> {
    let events = host.daemon.events().into_iter().filter(|event| event.kind == EventKind::PortEnded);
    events.flat_map(|event| event.ports).collect()
}

/// Waits for the `times`-th end of a port.
fn await_ended(host: &Host, port: &str, times: usize) {
    let count = || ended(host).iter().filter(|of| *of == port).count();
    await_that(&format!("end {times} of {port}"), || (count() >= times).then_some(()));
    assert_eq!(count(), times);
}

/// Waits until a port is as a container gets it.
fn await_attached(host: &Host, container: &Container<'_>, network: &str) {
    let is_attached = |port: &PortView| port.status == Status::Active || port.status_code == "no_carrier";
    await_that("an attached port", || host.port(container, network).filter(is_attached));
}

/// No DEL comes: the runtime was killed. Addresses and records are there until a DEL or GC.
#[test]
fn a_port_ends_with_the_namespace_of_its_container_and_its_names_are_free() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    for (name, keys, kind) in modes() {
        let (network, container) = (host.network(name, keys), Container::new("aaa", &a));
        let id = format!("{name}:aaa:eth0");
        let result = host.done("ADD", &container, &network);
        let port = host.port(&container, name).unwrap();
        assert_eq!((port.lifetime.as_str(), port.device.kind.as_str()), ("netns", kind));
        a.delete();
        await_ended(&host, &id, 1);
        assert_eq!(host.daemon.listed().len(), 0);

        let mut with_result = network.clone();
        with_result["prevResult"] = result.clone();
        let (code, text) = host.refused("CHECK", &container, &with_result);
        assert!(code == 4 && text.contains("no such network namespace"), "{code} {text}");
        let (code, text) = host.refused("ADD", &container, &network);
        assert!(code == 4 && text.contains("no such network namespace"), "{code} {text}");
        a.make();
        let (code, text) = host.refused("CHECK", &container, &with_result);
        assert!(code == 101 && text.contains(&format!("has no port \"{id}\"")), "{code} {text}");
        // The same address, although the lease was never released, and the same MAC address.
        assert_eq!(host.done("ADD", &container, &network), result);
        host.done("CHECK", &container, &with_result);
        assert_eq!(host.done("ADD", &container, &network), result);

        a.delete();
        await_ended(&host, &id, 2);
        host.done("DEL", &container, &network);
        host.done("DEL", &container, &network);
        assert_eq!((host.daemon.listed().len(), host.left_over()), (0, (BTreeSet::new(), 0)));

        a.make();
        host.done("ADD", &container, &network);
        a.delete();
        await_ended(&host, &id, 3);
        let mut nobody = network.clone();
        nobody["cni.dev/valid-attachments"] = json!([]);
        host.done("GC", &NOBODY, &nobody);
        assert_eq!(host.left_over().0, BTreeSet::new());
        host.done("DEL", &container, &network);
        assert_eq!(host.left_over(), (BTreeSet::new(), 0));
        a.make();
    }
}

/// The port of the earlier namespace is still there when ADD comes: the switch has not noticed anything, or something holds that
/// namespace. A second port tells when the earlier namespace has ended for the switch.
#[test]
fn add_succeeds_in_a_namespace_that_has_the_path_of_an_earlier_one() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let second_network = host.network("second", json!({}));
    for (name, keys, _) in modes() {
        let (network, container) = (host.network(name, keys), Container::new("aaa", &a));
        let second = container.with("eth9");
        let before = ended(&host).len();
        let mut result = Value::Null;
        for is_held in [false, true] {
            host.done("ADD", &container, &network);
            host.done("ADD", &second, &second_network);
            let inhabitant = is_held.then(|| Inhabitant::of(&a));
            if inhabitant.is_some() {
                a.delete();
                a.make();
                await_that("a port whose namespace has lost its name", || {
                    host.port(&container, name).filter(|port| port.status_code == "namespace_unnamed")
                });
                result = host.done("ADD", &container, &network);
            } else {
                host.daemon.signal(Signal::STOP);
                a.delete();
                a.make();
                std::thread::scope(|scope| {
                    let call = scope.spawn(|| host.done("ADD", &container, &network));
                    host.daemon.signal(Signal::CONT);
                    result = call.join().unwrap();
                });
            }
            drop(inhabitant);
            await_that("the end of the earlier namespace", || host.port(&second, "second").is_none().then_some(()));
            await_attached(&host, &container, name);
            assert!(a.link("eth0").is_some());
            let mut with_result = network.clone();
            with_result["prevResult"] = result.clone();
            host.done("CHECK", &container, &with_result);
            host.done("DEL", &second, &second_network);
        }
        assert!(ended(&host).len() >= before + 2, "{:?}", ended(&host));
        host.done("DEL", &container, &network);
        assert_eq!((host.daemon.listed().len(), host.left_over()), (0, (BTreeSet::new(), 0)));
    }
}

/// Lets the IPAM plugin replace the namespace at the next ADD, between the look of the plugin at the port and its change.
fn replace_in_the_next_add(host: &Host, namespace: &Namespace) {
    // Without record and lease, the IPAM plugin is asked once more.
    fs::remove_dir_all(host.records()).unwrap();
    fs::remove_dir_all(host.directory.path().join("leases/2")).unwrap();
    let hook = host.directory.path().join("hook");
    fs::write(&hook, format!("#!/bin/sh\nrm ../hook; ip netns del {0}; ip netns add {0}\n", namespace.0)).unwrap();
    fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn add_succeeds_when_the_namespace_is_replaced_while_it_runs() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let network = host.network("blue", json!({ "port": { "port_security": "mac+ip" } }));
    let container = Container::new("aaa", &a);
    let result = host.done("ADD", &container, &network);
    replace_in_the_next_add(&host, &a);
    assert_eq!(host.done("ADD", &container, &network), result);
    assert!(!host.directory.path().join("hook").exists(), "the namespace was replaced");
    let mut with_result = network.clone();
    with_result["prevResult"] = result;
    host.done("CHECK", &container, &with_result);
    assert_eq!(a.links(), ["eth0", "lo"]);
    assert!(addresses(&a, "eth0").contains(&("10.77.0.2".parse().unwrap(), 24)));
    host.done("DEL", &container, &network);
    assert_eq!(host.left_over(), (BTreeSet::new(), 0));
}

/// A process holds the earlier one, so that its port does not end.
#[test]
fn add_succeeds_when_the_namespace_is_replaced_while_it_runs_and_something_holds_the_earlier_one() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let network = host.network("blue", json!({ "port": { "port_security": "mac+ip" } }));
    let container = Container::new("aaa", &a);
    let result = host.done("ADD", &container, &network);
    let inhabitant = Inhabitant::of(&a);
    replace_in_the_next_add(&host, &a);
    assert_eq!(host.done("ADD", &container, &network), result);
    assert!(!host.directory.path().join("hook").exists(), "the namespace was replaced");
    drop(inhabitant);
    await_attached(&host, &container, "blue");
    assert_eq!(a.links(), ["eth0", "lo"]);
    assert!(addresses(&a, "eth0").contains(&("10.77.0.2".parse().unwrap(), 24)));
    assert_eq!(ended(&host), <[String; 0]>::default());
}

/// Versions without lifetimes have made the port. The interface stays as it is.
#[test]
fn a_port_of_an_earlier_version_gets_its_lifetime_when_add_is_repeated() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    for (name, keys, _) in modes() {
        let (network, container) = (host.network(name, keys), Container::new("aaa", &a));
        let lifetime = || host.port(&container, name).unwrap().lifetime;
        let result = host.done("ADD", &container, &network);
        let index = a.link("eth0").unwrap().index;
        let set = ["set", &format!("{name}:aaa:eth0"), "lifetime="];
        host.daemon.done(&set, "");
        assert_eq!(lifetime(), "config");
        assert_eq!(host.done("ADD", &container, &network), result);
        assert_eq!((lifetime().as_str(), a.link("eth0").unwrap().index), ("netns", index));
        // One whose namespace was replaced is no obstacle either.
        host.daemon.done(&set, "");
        a.delete();
        a.make();
        assert_eq!(host.done("ADD", &container, &network), result);
        assert_eq!(lifetime(), "netns");
        await_attached(&host, &container, name);
        host.done("DEL", &container, &network);
    }
    assert_eq!(host.left_over(), (BTreeSet::new(), 0));
    // It ends with the namespace as others do.
    let container = Container::new("bbb", &a);
    let body = json!({ "device_id": "bbb", "network_id": "blue", "mac_address": "02:00:00:00:0c:01", "owner": "cni",
                       "position": 0, "port_id": "blue:bbb:eth0",
                       "device": { "kind": "tap", "name": "eth0", "netns": container.netns } });
    host.daemon.done(&["attach", "-"], &body.to_string());
    await_attached(&host, &container, "blue");
    let result = host.done("ADD", &container, &host.network("blue", json!({})));
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:0c:01");
    host.daemon.await_stored(&format!("\"netns\":\"{}\",\"port_id\":\"blue:bbb:eth0\"", container.netns));
    a.delete();
    await_ended(&host, "blue:bbb:eth0", 1);
}
