//! `vifswitch doctor` on real netdevs: its predictions are correct, and it changes nothing. Needs root; makes its own
//! namespaces.

use std::process::Command;

use serde_json::Value;
use support::host::nic::experiment;
use support::host::{Namespace, readable, run};
use vifswitch::device::xdp::{self, Mode, Settings};
use vifswitch::frame::{Batch, Magazine, Pool};
use vifswitch::sys::tun::{Flags, Queue};
use vifswitch::wire::Mac;

/// Exit code and report on a device.
fn request(device: &str) -> (i32, Value) {
    let output = Command::new(support::host::program()).args(["doctor", "--json", device]).output().unwrap();
    let said = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), said[0].clone())
}

fn kind<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["kinds"].as_array().unwrap().iter().find(|kind| kind["kind"] == name).unwrap()
}

fn said(report: &Value, what: &str) -> bool {
    report.to_string().contains(what)
}

#[test]
fn a_veth_is_as_predicted_and_unchanged() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("link add v0 type veth peer name v1");
    namespace.ip("link set dev v0 up");
    namespace.ip("link set dev v1 up");
    let before = namespace.link("v0").unwrap();
    let (code, report) = request(&format!("{}:v0", namespace.0));
    assert_eq!(namespace.link("v0").unwrap(), before);
    assert_eq!((code, report["driver"].as_str()), (0, Some("veth")), "{report}");
    for name in ["xdp", "packet"] {
        assert_eq!(kind(&report, name)["usable"], true, "{report}");
    }
    assert_eq!(kind(&report, "tap")["usable"], false);
    let settings = Settings {
        name: "v0".into(),
        netns: namespace.netns(),
        queues: None,
        mode: Mode::Auto,
        replace_xdp_program: false,
        mtu: 1500,
        fill: 64,
        owner: "p".into(),
        vlan_demux: false,
    };
    let opened = xdp::open(&settings, Pool::new(256).unwrap()).unwrap();
    let why = kind(&report, "xdp")["why"].as_str().unwrap().to_owned();
    assert!(why.contains(opened.mode.as_deref().unwrap()), "{why}: {opened:?}");
    assert_eq!(kind(&report, "xdp")["queues"], opened.queues.len());
}

#[test]
fn a_tap_with_virtio_net_hdr_is_warned_of() {
    let Some(namespace) = Namespace::new() else { return };
    for (name, vnet_header, trap) in [("with", true, true), ("without", false, false)] {
        let flags = Flags { vnet_header, multi_queue: false, exclusive: true };
        let held = namespace.run_in(|| Queue::open(name, flags)).unwrap();
        namespace.ip(&format!("link set dev {name} up"));
        let (code, report) = request(&format!("{}:{name}", namespace.0));
        assert_eq!(code, 0, "{report}");
        assert_eq!(said(&report, "XDP hook"), trap, "{report}");
        assert_eq!(report["prefer"], if trap { "packet" } else { "xdp" }, "{report}");
        drop(held);
    }
}

#[test]
fn long_frames_pass_a_tap_by_xdp_as_is_predicted() {
    let Some(namespace) = Namespace::new() else { return };
    let flags = Flags { vnet_header: false, multi_queue: false, exclusive: true };
    let held = namespace.run_in(|| Queue::open("t0", flags)).unwrap();
    namespace.ip("link set dev t0 mtu 9000 up");
    let (code, report) = request(&format!("{}:t0", namespace.0));
    assert_eq!((code, &kind(&report, "xdp")["usable"]), (0, &Value::from(true)), "{report}");
    assert_eq!(report["prefer"], "xdp", "{report}");
    let settings = Settings {
        name: "t0".into(),
        netns: namespace.netns(),
        queues: None,
        mode: Mode::Auto,
        replace_xdp_program: false,
        mtu: 9000,
        fill: 64,
        owner: "p".into(),
        vlan_demux: false,
    };
    let pool = Pool::new(256).unwrap();
    let mut opened = xdp::open(&settings, pool).unwrap();
    assert!(opened.mode.as_deref().is_some_and(|mode| mode.starts_with("native")), "{opened:?}");
    let device = &mut opened.queues[0];
    let (mut batch, mut magazine) = (Batch::new(), Magazine::new(pool));
    let frame = experiment(Mac::BROADCAST, Mac::from_bits(2 << 40), &[7; 9000]);
    held.write(&frame).unwrap();
    readable(device.fd().unwrap());
    device.receive(&mut batch, &mut magazine).unwrap();
    assert_eq!(batch.len(), 1);
    assert_eq!(batch.frame_ref(0).to_vec(), frame);
    batch.clear(&mut magazine);
}

#[test]
fn a_netdev_of_a_running_switch_is_recognised() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("link add v0 type veth peer name v1");
    namespace.ip("link set dev v0 up");
    namespace.ip("link set dev v1 up");
    let settings = |mode| Settings {
        name: "v0".into(),
        netns: namespace.netns(),
        queues: None,
        mode,
        replace_xdp_program: false,
        mtu: 1500,
        fill: 64,
        owner: "p".into(),
        vlan_demux: false,
    };
    let _ours = xdp::open(&settings(Mode::Copy), Pool::new(256).unwrap()).unwrap();
    let id = namespace.link("v0").unwrap().xdp.unwrap().program;
    let (code, report) = request(&format!("{}:v0", namespace.0));
    assert_eq!((code, &kind(&report, "xdp")["usable"]), (0, &Value::Bool(true)), "{report}");
    assert!(said(&report, &format!("id {id}) is that of a vifswitch")), "{report}");
    assert!(!said(&report, "replace_xdp_program") && !said(&report, "xdpdrv off"), "{report}");
}

#[test]
fn an_unusable_netdev_exits_1_and_an_invalid_name_2() {
    let Some(namespace) = Namespace::new() else { return };
    run("ip", &["-n", &namespace.0, "link", "set", "dev", "lo", "up"]);
    for device in [format!("{}:lo", namespace.0), format!("{}:none", namespace.0), "vift-nowhere:v0".into()] {
        let (code, report) = request(&device);
        assert_eq!(code, 1, "{report}");
        assert!(report["problem"].is_string(), "{report}");
    }
    for device in ["a/b", ":x", "a-name-too-long-for-it"] {
        assert_eq!(request(device).0, 2, "{device}");
    }
}
