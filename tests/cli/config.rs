//! The configuration file: the meaning of valid files, and the error for each mistake. Needs nothing of the host.

use std::path::PathBuf;

use proptest::prelude::*;
use vifswitch::control::config::{
    self, Activation, AddressPair, Config, ConfigError, ConfigErrors, Device, IpAllocation, Lifetime, Network, Packet,
    Poll, Port, PortAttachment, PortSecurity, Storm, StormAction, SwitchSettings, Tap, UnknownUnicast, Uplink,
    UplinkNetwork, Vm, Xdp, kind, parse_json, parse_toml,
};
use vifswitch::device::xdp::Mode;
use vifswitch::switch::{ClassLimit, Rate, StormClass, StormLimits};
use vifswitch::wire::Vid;

/// The example of the manual.
const EXAMPLE: &str = r#"
[switch]
cores   = [1]
api     = "/run/vifswitch/api.sock"
state   = "/var/lib/vifswitch/state.db"
metrics = "127.0.0.1:9477"
poll    = "adaptive"
frames  = 65536

[[networks]]
id  = "net1"
mtu = 1500

[[networks]]
id = "net2"
mtu = 9000
ageing_seconds = 60

[[vms]]
id = "fw-3"

  [[vms.ports]]
  port_id     = "0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f0001"
  network_id  = "net1"
  mac_address = "02:00:00:00:01:0a"
  fixed_ips   = []
  ip_allocation = "none"
  port_security = "mac"
  allowed_address_pairs = [{ mac_address = "00:00:5e:00:01:01" }]
  admin_state_up = true
  device = { kind = "tap", name = "tap0c11a9e4-6f", netns = "fw-3", queues = 1, offloads = true }

  [[vms.ports]]
  port_id     = "9b2f77d0-0000-4b0e-9a51-7f5f9c1f0002"
  network_id  = "net1"
  mac_address = "02:00:00:00:01:0b"
  port_security_enabled = false
  device = { kind = "tap", persist = false }

[[vms]]
id = "client"

  [[vms.ports]]
  port_id     = "p3"
  network_id  = "net2"
  mac_address = "02:00:00:00:01:0a"
  fixed_ips   = ["10.5.0.1"]
  admin_state_up = false
  device = { kind = "tap", netns = "/run/netns/client", queues = 4, offloads = false }

[[uplinks]]
id       = "up0"
group    = "wire"
device   = { kind = "xdp", name = "eth1" }
networks = [{ network_id = "net1", vlan = 120 }, { network_id = "net2" }]

[[uplinks]]
id       = "up1"
group    = "wire"
device   = { kind = "packet", name = "eth2", netns = "wire", offloads = false }
networks = [{ network_id = "net2" }, { network_id = "net1", vlan = 120 }]
admin_state_up = false
"#;

#[test]
fn the_example_has_its_meaning() {
    let tap = |name: &str| Tap { name: name.to_string(), netns: None, queues: 1, offloads: true, persist: true };
    let port = |port_id: &str, network_id: &str, mac: &str, tap: Tap| Port {
        port_id: port_id.to_string(),
        network_id: network_id.to_string(),
        mac: mac.parse().unwrap(),
        fixed_ips: vec![],
        ip_allocation: IpAllocation::None,
        port_security: PortSecurity::Mac,
        allowed_address_pairs: vec![],
        unknown_unicast: UnknownUnicast::Deliver,
        promiscuous: false,
        mac_learning: true,
        mac_limit: None,
        storm: Storm::default(),
        activation: Activation::Immediate,
        lifetime: Lifetime::Config,
        admin_state_up: true,
        attachment: PortAttachment::Device(Device::Tap(tap)),
        position: None,
        owner: None,
    };
    let expected = Config {
        switch: SwitchSettings {
            cores: vec![1],
            metrics: Some("127.0.0.1:9477".parse().unwrap()),
            poll: Poll::Adaptive,
            ..SwitchSettings::default()
        },
        networks: vec![Network::new("net1"), Network { mtu: 9000, ageing_seconds: 60, ..Network::new("net2") }],
        vms: vec![
            Vm {
                owner: None,
                id: "fw-3".to_string(),
                storm: Storm::default(),
                share_mac: false,
                sibling_split_horizon: false,
                ports: vec![
                    Port {
                        allowed_address_pairs: vec![AddressPair { mac: "00:00:5e:00:01:01".parse().ok(), ip: None }],
                        ..port(
                            "0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f0001",
                            "net1",
                            "02:00:00:00:01:0a",
                            Tap { netns: Some("fw-3".to_string()), ..tap("tap0c11a9e4-6f") },
                        )
                    },
                    Port {
                        port_security: PortSecurity::Off,
                        ..port(
                            "9b2f77d0-0000-4b0e-9a51-7f5f9c1f0002",
                            "net1",
                            "02:00:00:00:01:0b",
                            Tap { persist: false, ..tap("tap9b2f77d0-00") },
                        )
                    },
                ],
            }
            .into(),
            Vm {
                owner: None,
                id: "client".to_string(),
                storm: Storm::default(),
                share_mac: false,
                sibling_split_horizon: false,
                ports: vec![Port {
                    fixed_ips: vec!["10.5.0.1".parse().unwrap()],
                    ip_allocation: IpAllocation::Immediate,
                    admin_state_up: false,
                    ..port(
                        "p3",
                        "net2",
                        "02:00:00:00:01:0a",
                        Tap {
                            netns: Some("/run/netns/client".to_string()),
                            queues: 4,
                            offloads: false,
                            ..tap("tapp3")
                        },
                    )
                }],
            }
            .into(),
        ],
        uplinks: vec![
            Uplink {
                owner: None,
                id: "up0".to_string(),
                group: Some("wire".to_string()),
                networks: vec![
                    UplinkNetwork { network_id: "net1".to_string(), vlan: Vid::new(120) },
                    UplinkNetwork { network_id: "net2".to_string(), vlan: None },
                ],
                storm: Storm::OFF,
                admin_state_up: true,
                device: Device::Xdp(Xdp {
                    name: "eth1".to_string(),
                    netns: None,
                    queues: None,
                    mode: Mode::Auto,
                    replace_xdp_program: false,
                }),
            },
            Uplink {
                owner: None,
                id: "up1".to_string(),
                group: Some("wire".to_string()),
                networks: vec![
                    UplinkNetwork { network_id: "net2".to_string(), vlan: None },
                    UplinkNetwork { network_id: "net1".to_string(), vlan: Vid::new(120) },
                ],
                storm: Storm::OFF,
                admin_state_up: false,
                device: Device::Packet(Packet {
                    name: "eth2".to_string(),
                    netns: Some("wire".to_string()),
                    offloads: false,
                    isolate: false,
                }),
            },
        ],
    };
    assert_eq!(parse_toml(EXAMPLE, "example.toml"), Ok(expected));
}

/// The example with one part replaced.
fn spoilt(from: &str, to: &str) -> String {
    assert!(EXAMPLE.contains(from), "the example has no {from}");
    EXAMPLE.replacen(from, to, 1)
}

/// The only error of a text.
fn problem(text: &str) -> ConfigError {
    let Err(errors) = parse_toml(text, "vms.toml") else { panic!("nothing wrong with:\n{text}") };
    let [problem] = errors.errors() else { panic!("not one problem:\n{errors}") };
    problem.clone()
}

/// Replaced part and replacement; key, value and parts of the remedy in the expected error.
type Mistake = (&'static str, &'static str, &'static str, Option<&'static str>, &'static str, &'static [&'static str]);

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    // values of the switch
    ("cores   = [1]", "cores = [1, 2, 1]", "switch.cores[2]", Some("1"), kind::BAD_VALUE, &["already"]),
    ("cores   = [1]", "cores = [1024]", "switch.cores[0]", Some("1024"), kind::BAD_VALUE, &["0 to 1023"]),
    ("cores   = [1]", "cores = [-1]", "switch.cores[0]", Some("-1"), kind::BAD_VALUE, &["0 to 1023"]),
    ("cores   = [1]", "cores = 1", "switch.cores", Some("1"), kind::WRONG_TYPE, &["a list"]),
    ("\"/run/vifswitch/api.sock\"", "\"\"", "switch.api", Some("\"\""), kind::BAD_VALUE, &["empty", "1 to 107"]),
    ("127.0.0.1:9477", "localhost", "switch.metrics", Some("\"localhost\""), kind::BAD_VALUE, &["127.0.0.1:9477"]),
    ("poll    =", "api_writers = { uids = [-1] }\npoll =", "switch.api_writers.uids[0]", Some("-1"), kind::BAD_VALUE, &["0 to 4294967294"]),
    ("poll    =", "api_writers = { gids = [4294967295] }\npoll =", "switch.api_writers.gids[0]", Some("4294967295"), kind::BAD_VALUE, &["a user or group"]),
    ("poll    =", "api_writers = { gids = [7, 8, 7] }\npoll =", "switch.api_writers.gids[2]", Some("7"), kind::BAD_VALUE, &["once"]),
    ("poll    =", "api_writers = { users = [1] }\npoll =", "switch.api_writers.users", Some("[1]"), kind::UNKNOWN_KEY, &["uids, gids"]),
    ("poll    =", "api_read = \"\"\npoll =", "switch.api_read", Some("\"\""), kind::BAD_VALUE, &["empty", "1 to 107"]),
    ("poll    =", "api_read = \"/run/vifswitch/api.sock\"\npoll =", "switch.api_read", Some("\"/run/vifswitch/api.sock\""), kind::CONTRADICTION, &["`api`", "read.sock"]),
    ("poll    =", "pages = \"9478\"\npoll =", "switch.pages", Some("\"9478\""), kind::BAD_VALUE, &["127.0.0.1:9478"]),
    ("poll    =", "pages = \"127.0.0.1:9477\"\npoll =", "switch.pages", Some("\"127.0.0.1:9477\""), kind::CONTRADICTION, &["`metrics`", "another port"]),
    ("poll    =", "pages_hosts = [\"a\"]\npoll =", "switch.pages_hosts", Some("[\"a\"]"), kind::CONTRADICTION, &["`pages`"]),
    ("poll    =", "pages = \"[::1]:1\"\npages_hosts = [\"a\", \"a:1\"]\npoll =", "switch.pages_hosts[1]", Some("\"a:1\""), kind::BAD_VALUE, &["without port"]),
    ("poll    =", "pages = \"[::1]:1\"\npages_hosts = [\"a\", \"A\"]\npoll =", "switch.pages_hosts[1]", Some("\"A\""), kind::BAD_VALUE, &["once"]),
    ("poll    =", "probe_key = \"file:probe.key\"\npoll =", "switch.probe_key", Some("\"file:probe.key\""), kind::BAD_VALUE, &["absolute path"]),
    ("poll    =", "probe_key = \"0123456789abcdef\"\npoll =", "switch.probe_key", None, kind::BAD_VALUE, &["file:/etc/vifswitch/probe.key"]),
    ("poll    =", "probe_key = 12345\npoll =", "switch.probe_key", None, kind::WRONG_TYPE, &["a text"]),
    ("poll    =", "probe_keys = \"0123456789abcdef\"\npoll =", "switch.probe_keys", None, kind::UNKNOWN_KEY, &["probe_key"]),
    ("\"adaptive\"", "\"lazy\"", "switch.poll", Some("\"lazy\""), kind::BAD_VALUE, &["\"adaptive\"", "\"busy\""]),
    ("65536", "1000", "switch.frames", Some("1000"), kind::BAD_VALUE, &["1024 to 4194304"]),
    ("frames  = 65536", "stations = 12", "switch.stations", Some("12"), kind::BAD_VALUE, &["1024 to 8388608"]),
    // values of a network
    ("mtu = 1500", "mtu = 10000", "networks[0].mtu", Some("10000"), kind::BAD_VALUE, &["68 to 9216"]),
    ("mtu = 1500", "mtu = \"big\"", "networks[0].mtu", Some("\"big\""), kind::WRONG_TYPE, &["a text", "a whole number"]),
    ("mtu = 1500", "mtu = 1500.5", "networks[0].mtu", Some("1500.5"), kind::WRONG_TYPE, &["a whole number"]),
    ("mtu = 1500", "fdb_limit = 100\nfdb_limit_per_port = 200", "networks[0].fdb_limit_per_port", Some("200"), kind::CONTRADICTION, &["fdb_limit", "100"]),
    ("mtu = 1500", "reserved_groups = \"some\"", "networks[0].reserved_groups", Some("\"some\""), kind::BAD_VALUE, &["\"vm-default\"", "\"none\"", "0xfffd", "bit n"]),
    ("mtu = 1500", "reserved_groups = \"0x10000\"", "networks[0].reserved_groups", Some("\"0x10000\""), kind::BAD_VALUE, &["16 bits"]),
    ("mtu = 1500", "reserved_groups = 0xfffd", "networks[0].reserved_groups", Some("65533"), kind::WRONG_TYPE, &["in quotes"]),
    ("id  = \"net1\"", "id = \"\"", "networks[0].id", Some("\"\""), kind::BAD_VALUE, &["empty", "1 to 255"]),
    // keys
    ("mac_address = \"02:00:00:00:01:0b\"", "mac_addres = \"x\"\nmac_address = \"02:00:00:00:01:0b\"", "vms[0].ports[1].mac_addres", Some("\"x\""), kind::UNKNOWN_KEY, &["did you mean mac_address?"]),
    ("mtu = 1500", "zzz = 1", "networks[0].zzz", Some("1"), kind::UNKNOWN_KEY, &["id, mtu, ageing_seconds"]),
    ("mtu = 1500", "vlan = 1", "networks[0].vlan", Some("1"), kind::NOT_YET, &["not supported yet"]),
    ("mtu = 1500", "probe_seconds = 0", "networks[0].probe_seconds", Some("0"), kind::BAD_VALUE, &["1 to 10"]),
    ("mtu = 1500", "dampening_seconds = 29", "networks[0].dampening_seconds", Some("29"), kind::BAD_VALUE, &["30 to 3600"]),
    ("id = \"fw-3\"", "id = \"fw-3\"\nshare_mac = 1", "vms[0].share_mac", Some("1"), kind::WRONG_TYPE, &["true or false"]),
    // storms
    ("mtu = 1500", "storm = 0", "networks[0].storm", Some("0"), kind::WRONG_TYPE, &["\"off\"", "a table of classes"]),
    ("mtu = 1500", "storm = \"none\"", "networks[0].storm", Some("\"none\""), kind::BAD_VALUE, &["\"off\"", "{ broadcast = { pps = 500 } }"]),
    ("mtu = 1500", "storm = { broadcasts = \"off\" }", "networks[0].storm.broadcasts", Some("\"off\""), kind::UNKNOWN_KEY, &["did you mean broadcast?"]),
    ("mtu = 1500", "storm = { broadcast = 0 }", "networks[0].storm.broadcast", Some("0"), kind::WRONG_TYPE, &["\"off\"", "{ pps = 500, burst = 500 }"]),
    ("mtu = 1500", "storm = { broadcast = \"none\" }", "networks[0].storm.broadcast", Some("\"none\""), kind::BAD_VALUE, &["\"off\"", "pps = 500"]),
    ("mtu = 1500", "storm = { multicast = {} }", "networks[0].storm.multicast", Some("{}"), kind::MISSING, &["limits nothing", "pps, bps or both", "\"off\""]),
    ("mtu = 1500", "storm = { multicast = { pps = 0 } }", "networks[0].storm.multicast.pps", Some("0"), kind::BAD_VALUE, &["\"off\"", "1 to 1000000000"]),
    ("mtu = 1500", "storm = { multicast = { pps = -1 } }", "networks[0].storm.multicast.pps", Some("-1"), kind::BAD_VALUE, &["1 to 1000000000"]),
    ("mtu = 1500", "storm = { multicast = { bps = 0 } }", "networks[0].storm.multicast.bps", Some("0"), kind::BAD_VALUE, &["\"off\"", "1000 to 200000000000"]),
    ("mtu = 1500", "storm = { multicast = { pps = 5, burst = 0 } }", "networks[0].storm.multicast.burst", Some("0"), kind::BAD_VALUE, &["1 to 18000"]),
    ("mtu = 1500", "storm = { multicast = { pps = 5, burst = 18001 } }", "networks[0].storm.multicast.burst", Some("18001"), kind::BAD_VALUE, &["1 to 18000"]),
    ("mtu = 1500", "storm = { multicast = { bps = 8000, burst = 10 } }", "networks[0].storm.multicast.burst", Some("10"), kind::CONTRADICTION, &["without a rate", "set pps"]),
    ("mtu = 1500", "storm = { multicast = { pps = 10, burst_bytes = 10 } }", "networks[0].storm.multicast.burst_bytes", Some("10"), kind::CONTRADICTION, &["set bps"]),
    ("mtu = 1500", "storm = { multicast = { bps = 8000, burst_bytes = 3600001 } }", "networks[0].storm.multicast.burst_bytes", Some("3600001"), kind::BAD_VALUE, &["1 to 3600000"]),
    ("mtu = 1500", "storm = { multicast = { pps = \"many\" } }", "networks[0].storm.multicast.pps", Some("\"many\""), kind::WRONG_TYPE, &["a whole number"]),
    ("mtu = 1500", "storm = { multicast = { pps = 5, action = \"shutdown\" } }", "networks[0].storm.multicast.action", Some("\"shutdown\""), kind::BAD_VALUE, &["\"drop\", \"drop+event\", \"disable\""]),
    ("mtu = 1500", "storm = { multicast = { pps = 5, recovery_seconds = 9 } }", "networks[0].storm.multicast.recovery_seconds", Some("9"), kind::CONTRADICTION, &["\"disable\""]),
    ("mtu = 1500", "storm = { multicast = { pps = 5, action = \"disable\", recovery_seconds = 86401 } }", "networks[0].storm.multicast.recovery_seconds", Some("86401"), kind::BAD_VALUE, &["0 to 86400"]),
    ("mtu = 1500", "storm = { copies = { burst = 5 } }", "networks[0].storm.copies.burst", Some("5"), kind::CONTRADICTION, &["set pps"]),
    ("mtu = 1500", "storm = { copies = {} }", "networks[0].storm.copies", Some("{}"), kind::MISSING, &["set pps"]),
    ("id = \"fw-3\"", "id = \"fw-3\"\nstorm = { copies = { pps = 0 } }", "vms[0].storm.copies.pps", Some("0"), kind::BAD_VALUE, &["\"off\""]),
    ("fixed_ips   = []", "storm = { copies = \"off\" }", "vms[0].ports[0].storm.copies", Some("\"off\""), kind::CONTRADICTION, &["for a VM on a network"]),
    ("id       = \"up1\"", "id       = \"up1\"\nstorm = { broadcast = { pps = 0 } }", "uplinks[1].storm.broadcast.pps", Some("0"), kind::BAD_VALUE, &["\"off\""]),
    // values of a port
    ("02:00:00:00:01:0b", "02:00:00:00:01", "vms[0].ports[1].mac_address", Some("\"02:00:00:00:01\""), kind::BAD_VALUE, &["not a MAC address", "02:00:00:00:01:0a"]),
    ("02:00:00:00:01:0b", "03:00:00:00:01:0b", "vms[0].ports[1].mac_address", Some("\"03:00:00:00:01:0b\""), kind::BAD_VALUE, &["a group address", "even"]),
    ("02:00:00:00:01:0b", "00:00:00:00:00:00", "vms[0].ports[1].mac_address", Some("\"00:00:00:00:00:00\""), kind::BAD_VALUE, &["zero", "02:00:00:00:01:0a"]),
    ("mac_address = \"02:00:00:00:01:0b\"", "", "vms[0].ports[1].mac_address", None, kind::MISSING, &["required", "02:00:00:00:01:0a"]),
    ("00:00:5e:00:01:01", "01:00:5e:00:01:01", "vms[0].ports[0].allowed_address_pairs[0].mac_address", Some("\"01:00:5e:00:01:01\""), kind::BAD_VALUE, &["a group address"]),
    ("fixed_ips   = []", "fixed_ips = [\"10.5.0.1/24\"]", "vms[0].ports[0].fixed_ips[0]", Some("\"10.5.0.1/24\""), kind::BAD_VALUE, &["10.5.0.1", "without a prefix"]),
    ("\"none\"", "\"never\"", "vms[0].ports[0].ip_allocation", Some("\"never\""), kind::BAD_VALUE, &["\"immediate\", \"deferred\", \"none\""]),
    ("port_security = \"mac\"", "port_security = \"ip\"", "vms[0].ports[0].port_security", Some("\"ip\""), kind::BAD_VALUE, &["\"off\", \"mac\", \"mac+ip\""]),
    ("[{ mac_address = \"00:00:5e:00:01:01\" }]", "[{}]", "vms[0].ports[0].allowed_address_pairs[0]", Some("{}"), kind::MISSING, &["mac_address, ip_address, or both"]),
    ("[{ mac_address = \"00:00:5e:00:01:01\" }]", "[{ mac_address = 7 }]", "vms[0].ports[0].allowed_address_pairs[0].mac_address", Some("7"), kind::WRONG_TYPE, &["a text"]),
    ("[{ mac_address = \"00:00:5e:00:01:01\" }]", "[{ ip_address = \"10.0.0.0/33\" }]", "vms[0].ports[0].allowed_address_pairs[0].ip_address", Some("\"10.0.0.0/33\""), kind::BAD_VALUE, &["10.5.0.0/24"]),
    ("[{ mac_address = \"00:00:5e:00:01:01\" }]", "[{ ip_address = \"10.5.0.1\" }, { ip_address = \"fd00::1\" }, { mac_address = \"02-00-00-00-01-0A\", ip_address = \"10.5.0.1/32\" }]", "vms[0].ports[0].allowed_address_pairs[2]", Some("{ mac_address = \"02-00-00-00-01-0A\", ip_address = \"10.5.0.1/…"), kind::DUPLICATE_PAIR, &["vms[0].ports[0].allowed_address_pairs[0] (line 29)", "remove one"]),
    ("[{ mac_address = \"00:00:5e:00:01:01\" }]", "[{ ip_address = \"10.5.0.1/8\" }, { ip_address = \"10.9.9.9/8\" }]", "vms[0].ports[0].allowed_address_pairs[1]", Some("{ ip_address = \"10.9.9.9/8\" }"), kind::DUPLICATE_PAIR, &["remove one"]),
    ("admin_state_up = true", "unknown_unicast = \"drop\"", "vms[0].ports[0].unknown_unicast", Some("\"drop\""), kind::BAD_VALUE, &["\"deliver\", \"suppress\""]),
    ("admin_state_up = true", "unknown_unicast = \"suppress\"\npromiscuous = true", "vms[0].ports[0].unknown_unicast", Some("\"suppress\""), kind::CONTRADICTION, &["promiscuous = true", "remove one"]),
    ("device = { kind = \"tap\", persist = false }", "parent = \"0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f0001\"", "vms[0].ports[1].vlan", None, kind::MISSING, &["required", "1 to 4094"]),
    ("device = { kind = \"tap\", persist = false }", "parent = \"0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f0001\"\nvlan = 4095", "vms[0].ports[1].vlan", Some("4095"), kind::BAD_VALUE, &["1 to 4094"]),
    ("device = { kind = \"tap\", persist = false }", "parent = \"0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f0001\"\nvlan = \"x\"", "vms[0].ports[1].vlan", Some("\"x\""), kind::WRONG_TYPE, &["a whole number"]),
    ("device = { kind = \"tap\", persist = false }", "device = { kind = \"tap\" }\nvlan = 7", "vms[0].ports[1].vlan", Some("7"), kind::CONTRADICTION, &["only a subport"]),
    ("device = { kind = \"tap\", persist = false }", "parent = \"0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f0001\"\nvlan = 7\ndevice = { kind = \"tap\" }", "vms[0].ports[1].device", Some("{ kind = \"tap\" }"), kind::CONTRADICTION, &["no device of its own", "remove one"]),
    ("device = { kind = \"tap\", persist = false }", "parent = \"p3\"\nvlan = 7", "vms[0].ports[1].parent", Some("\"p3\""), kind::CONTRADICTION, &["of VM \"client\""]),
    ("device = { kind = \"tap\", persist = false }", "parent = \"0c11a9e4\"\nvlan = 7", "vms[0].ports[1].parent", Some("\"0c11a9e4\""), kind::UNKNOWN_PARENT, &["did you mean \"0c11a9e4-6f1b"]),
    ("device = { kind = \"tap\", persist = false }", "parent = \"9b2f77d0-0000-4b0e-9a51-7f5f9c1f0002\"\nvlan = 7", "vms[0].ports[1].parent", Some("\"9b2f77d0-0000-4b0e-9a51-7f5f9c1f0002\""), kind::CONTRADICTION, &["its own parent"]),
    ("admin_state_up = true", "activation = \"rarp\"", "vms[0].ports[0].activation", Some("\"rarp\""), kind::BAD_VALUE, &["\"immediate\", \"first-frame\""]),
    ("admin_state_up = true", "lifetime = \"pod\"", "vms[0].ports[0].lifetime", Some("\"pod\""), kind::BAD_VALUE, &["\"config\", \"netns\""]),
    ("port_security_enabled = false", "lifetime = \"netns\"", "vms[0].ports[1].lifetime", Some("\"netns\""), kind::CONTRADICTION, &["the switch's own network namespace", "set device.netns"]),
    ("device = { kind = \"tap\", persist = false }", "parent = \"0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f0001\"\nvlan = 7\nlifetime = \"netns\"", "vms[0].ports[1].lifetime", Some("\"netns\""), kind::CONTRADICTION, &["ends with its parent"]),
    ("admin_state_up = true", "promiscuous = \"yes\"", "vms[0].ports[0].promiscuous", Some("\"yes\""), kind::WRONG_TYPE, &["true or false"]),
    ("admin_state_up = true", "mac_limit = 0", "vms[0].ports[0].mac_limit", Some("0"), kind::BAD_VALUE, &["1 to 4294967295"]),
    ("admin_state_up = true", "mac_limit = 8193", "vms[0].ports[0].mac_limit", Some("8193"), kind::CONTRADICTION, &["fdb_limit_per_port", "\"net1\"", "8192"]),
    ("admin_state_up = true", "mac_limit = 4\nmac_limit_policy = \"learn\"", "vms[0].ports[0].mac_limit_policy", Some("\"learn\""), kind::BAD_VALUE, &["\"drop\", \"forward-unlearned\""]),
    ("admin_state_up = true", "mac_limit_policy = \"drop\"", "vms[0].ports[0].mac_limit_policy", Some("\"drop\""), kind::CONTRADICTION, &["set mac_limit", "remove this key"]),
    ("mac_address = \"02:00:00:00:01:0b\"", "mac_address = \"00:00:5e:00:01:01\"\nunknown_unicast = \"suppress\"", "vms[0].ports[1].unknown_unicast", Some("\"suppress\""), kind::CONTRADICTION, &["vms[0].ports[0].allowed_address_pairs[0] (line 29)", "not pinned", "remove this key, or the pair"]),
    ("port_security = \"mac\"", "port_security = \"off\"", "vms[0].ports[0].allowed_address_pairs", Some("[{ mac_address = \"00:00:5e:00:01:01\" }]"), kind::CONTRADICTION, &["remove the pairs", "mac"]),
    ("port_security_enabled = false", "port_security_enabled = false\nport_security = \"mac\"", "vms[0].ports[1].port_security_enabled", Some("false"), kind::CONTRADICTION, &["port_security = \"mac\"", "remove one"]),
    ("port_security_enabled = false", "port_security_enabled = true\nport_security = \"off\"", "vms[0].ports[1].port_security_enabled", Some("true"), kind::CONTRADICTION, &["port_security = \"off\""]),
    ("admin_state_up = true", "admin_state_up = 1", "vms[0].ports[0].admin_state_up", Some("1"), kind::WRONG_TYPE, &["true or false"]),
    // devices
    ("device = { kind = \"tap\", persist = false }", "", "vms[0].ports[1].device", None, kind::MISSING, &["kind = \"tap\""]),
    ("device = { kind = \"tap\", persist = false }", "device = \"tap\"", "vms[0].ports[1].device", Some("\"tap\""), kind::WRONG_TYPE, &["a table"]),
    ("kind = \"tap\", persist", "persist", "vms[0].ports[1].device.kind", None, kind::MISSING, &["\"tap\""]),
    ("kind = \"tap\", persist", "kind = \"xdp\", name = \"eth7\", persist", "vms[0].ports[1].device.persist", Some("false"), kind::CONTRADICTION, &["\"xdp\" has no persist", "only kind \"tap\"", "others own its netdev"]),
    ("kind = \"tap\", persist", "kind = \"packet\", name = \"eth7\", persist", "vms[0].ports[1].device.persist", Some("false"), kind::CONTRADICTION, &["\"packet\" has no persist", "only kind \"tap\""]),
    ("kind = \"tap\", persist", "kind = \"tap\", replace_xdp_program = true, persist", "vms[0].ports[1].device.replace_xdp_program", Some("true"), kind::CONTRADICTION, &["\"tap\" has no replace_xdp_program", "only kind \"xdp\""]),
    ("kind = \"tap\", persist", "kind = \"tap\", mode = \"copy\", persist", "vms[0].ports[1].device.mode", Some("\"copy\""), kind::CONTRADICTION, &["\"tap\" has no mode", "only kind \"xdp\""]),
    ("kind = \"xdp\"", "kind = \"xdp\", offloads = true", "uplinks[0].device.offloads", Some("true"), kind::CONTRADICTION, &["\"xdp\" has no offloads", "only kind \"tap\", \"packet\"", "completed in software"]),
    ("kind = \"packet\"", "kind = \"packet\", queues = 2", "uplinks[1].device.queues", Some("2"), kind::CONTRADICTION, &["\"packet\" has no queues", "only kind \"tap\", \"xdp\""]),
    ("kind = \"xdp\"", "kind = \"xdp\", mode = \"fast\"", "uplinks[0].device.mode", Some("\"fast\""), kind::BAD_VALUE, &["\"auto\", \"zero-copy\", \"copy\", \"generic\""]),
    ("kind = \"xdp\"", "kind = \"xdp\", queues = 0", "uplinks[0].device.queues", Some("0"), kind::BAD_VALUE, &["1 to 256"]),
    ("kind = \"xdp\", name = \"eth1\"", "kind = \"xdp\"", "uplinks[0].device.name", None, kind::MISSING, &["required", "existing netdev"]),
    ("name = \"eth2\"", "name = \"a b\"", "uplinks[1].device.name", Some("\"a b\""), kind::BAD_VALUE, &["' '"]),
    ("kind = \"tap\", persist", "kind = \"tap\", path = \"/x\", persist", "vms[0].ports[1].device.path", Some("\"/x\""), kind::NOT_YET, &["not supported yet"]),
    ("kind = \"tap\", persist", "kind = \"vhost-user\", persist", "vms[0].ports[1].device.kind", Some("\"vhost-user\""), kind::NOT_YET, &["not supported yet", "\"tap\", \"xdp\", \"packet\""]),
    ("kind = \"tap\", persist", "kind = \"tun\", persist", "vms[0].ports[1].device.kind", Some("\"tun\""), kind::BAD_VALUE, &["no such kind", "\"tap\""]),
    ("tap0c11a9e4-6f", "tap0c11a9e4-6f1b", "vms[0].ports[0].device.name", Some("\"tap0c11a9e4-6f1b\""), kind::BAD_VALUE, &["16 bytes", "15"]),
    ("tap0c11a9e4-6f", "a/b", "vms[0].ports[0].device.name", Some("\"a/b\""), kind::BAD_VALUE, &["'/'"]),
    ("netns = \"fw-3\"", "netns = \"a/b\"", "vms[0].ports[0].device.netns", Some("\"a/b\""), kind::BAD_VALUE, &["absolute path"]),
    ("queues = 4", "queues = 257", "vms[1].ports[0].device.queues", Some("257"), kind::BAD_VALUE, &["1 to 256"]),
    ("port_id     = \"p3\"", "port_id = \"a b\"", "vms[1].ports[0].device.name", None, kind::BAD_VALUE, &["required", "\"tapa b\""]),
    // uplinks
    ("vlan = 120 }, {", "vlan = 0 }, {", "uplinks[0].networks[0].vlan", Some("0"), kind::BAD_VALUE, &["1 to 4094"]),
    ("vlan = 120 }, {", "vlan = 4095 }, {", "uplinks[0].networks[0].vlan", Some("4095"), kind::BAD_VALUE, &["1 to 4094"]),
    ("vlan = 120 }, {", "vlan = \"x\" }, {", "uplinks[0].networks[0].vlan", Some("\"x\""), kind::WRONG_TYPE, &["a whole number"]),
    ("{ network_id = \"net2\" }]\n", "{ network_id = \"net1\", vlan = 7 }]\n", "uplinks[0].networks[1].network_id", Some("\"net1\""), kind::CONTRADICTION, &["uplinks[0].networks[0] (line 55)", "each network of an uplink once"]),
    ("{ network_id = \"net2\" }]\n", "{ network_id = \"net2\", vlan = 120 }]\n", "uplinks[0].networks[1].vlan", Some("120"), kind::CONTRADICTION, &["uplinks[0].networks[0] (line 55)", "needs its own"]),
    ("\"net1\", vlan = 120 }, {", "\"net1\" }, {", "uplinks[0].networks[1].vlan", None, kind::CONTRADICTION, &["required", "uplinks[0].networks[0] (line 55)", "one network"]),
    ("{ network_id = \"net2\" }]\n", "{ vlan = 7 }]\n", "uplinks[0].networks[1].network_id", None, kind::MISSING, &["required"]),
    ("networks = [{ network_id = \"net1\", vlan = 120 }, { network_id = \"net2\" }]\n", "", "uplinks[0].networks", None, kind::MISSING, &["required", "network_id = \"net1\""]),
    ("networks = [{ network_id = \"net1\", vlan = 120 }, { network_id = \"net2\" }]\n", "networks = []\n", "uplinks[0].networks", Some("[]"), kind::BAD_VALUE, &["forwards nothing"]),
    ("id       = \"up1\"", "id       = \"up0\"", "uplinks[1].id", Some("\"up0\""), kind::DUPLICATE_UPLINK, &["uplinks[0].id (line 52)"]),
    ("id       = \"up1\"", "id       = \"p3\"", "uplinks[1].id", Some("\"p3\""), kind::DUPLICATE_UPLINK, &["vms[1].ports[0].port_id (line 44)", "a port"]),
    ("name = \"eth2\", netns = \"wire\"", "name = \"eth1\"", "uplinks[1].device.name", Some("\"eth1\""), kind::DUPLICATE_DEVICE, &["uplinks[0].device.name (line 54)", "another netdev"]),
    ("name = \"eth2\", netns = \"wire\"", "name = \"tap0c11a9e4-6f\", netns = \"/run/netns/fw-3\"", "uplinks[1].device.name", Some("\"tap0c11a9e4-6f\""), kind::DUPLICATE_DEVICE, &["vms[0].ports[0].device.name (line 31)"]),
    // between tables
    ("id = \"net2\"", "id = \"net1\"\n[[networks]]\nid = \"net2\"", "networks[1].id", Some("\"net1\""), kind::DUPLICATE_NETWORK, &["networks[0].id (line 11)"]),
    ("id = \"client\"", "id = \"fw-3\"", "vms[1].id", Some("\"fw-3\""), kind::DUPLICATE_VM, &["vms[0].id (line 20)"]),
    ("\"p3\"", "\"9b2f77d0-0000-4b0e-9a51-7f5f9c1f0002\"", "vms[1].ports[0].port_id", Some("\"9b2f77d0-0000-4b0e-9a51-7f5f9c1f0002\""), kind::DUPLICATE_PORT, &["vms[0].ports[1].port_id (line 34)", "once"]),
    ("02:00:00:00:01:0b", "02-00-00-00-01-0A", "vms[0].ports[1].mac_address", Some("\"02-00-00-00-01-0A\""), kind::DUPLICATE_MAC, &["vms[0].ports[0].mac_address (line 25)", "another address"]),
    ("network_id  = \"net2\"", "network_id = \"nett2\"", "vms[1].ports[0].network_id", Some("\"nett2\""), kind::UNKNOWN_NETWORK, &["did you mean \"net2\"?"]),
    ("network_id  = \"net2\"", "network_id = \"zzz\"", "vms[1].ports[0].network_id", Some("\"zzz\""), kind::UNKNOWN_NETWORK, &["\"net1\", \"net2\""]),
    ("netns = \"/run/netns/client\"", "netns = \"/run/netns/fw-3\", name = \"tap0c11a9e4-6f\"", "vms[1].ports[0].device.name", Some("\"tap0c11a9e4-6f\""), kind::DUPLICATE_DEVICE, &["vms[0].ports[0].device.name (line 31)"]),
];

/// Shows: REQ-14, REQ-31
#[test]
fn every_mistake_is_reported_with_key_value_and_remedy() {
    for (from, to, key, value, kind, remedy) in MISTAKES {
        let text = spoilt(from, to);
        let problem = problem(&text);
        assert_eq!((problem.key.as_str(), problem.value.as_deref(), problem.kind), (*key, *value, *kind), "{problem}");
        for piece in *remedy {
            assert!(problem.message.contains(piece), "no {piece:?} in {problem}");
        }
        let shown = problem.to_string();
        assert!(shown.starts_with("vms.toml:"), "{shown}");
        assert!(shown.contains(&value.map_or(key.to_string(), |value| format!("{key} = {value}"))), "{shown}");
        // The line is that of the key, or of the table if a key is missing.
        let line = text.lines().nth(problem.line.unwrap() - 1).unwrap();
        let name = key.rsplit('.').next().unwrap().split('[').next().unwrap();
        assert!(line.contains(name) || value.is_none(), "{shown}\n{line}");
    }
}

#[test]
fn an_error_reads_like_a_compilers() {
    let text = spoilt("02:00:00:00:01:0b", "02:00:00:00:01");
    assert_eq!(
        problem(&text).to_string(),
        "vms.toml:36: vms[0].ports[1].mac_address = \"02:00:00:00:01\": not a MAC address; one looks like \
         02:00:00:00:01:0a (VM \"fw-3\", port \"9b2f77d0-0000-4b0e-9a51-7f5f9c1f0002\")"
    );
}

#[test]
fn all_mistakes_are_reported_in_the_order_of_the_file() {
    let text = r#"
[switch]
pol = "busy"
frames = 7
[[networks]]
id = "net1"
mtu = "x"
[[vms]]
id = 5
[[vms.ports]]
port_id = "p1"
network_id = "net2"
device = { kind = "tap", queues = 0, name = "" }
"#;
    let errors = parse_toml(text, "x").unwrap_err();
    let found: Vec<_> = errors.errors().iter().map(|problem| (problem.line.unwrap(), problem.key.as_str())).collect();
    let wanted = [
        (3, "switch.pol"),
        (4, "switch.frames"),
        (7, "networks[0].mtu"),
        (9, "vms[0].id"),
        (10, "vms[0].ports[0].mac_address"),
        (12, "vms[0].ports[0].network_id"),
        (13, "vms[0].ports[0].device.name"),
        (13, "vms[0].ports[0].device.queues"),
    ];
    assert_eq!(found, wanted, "{errors}");
    assert_eq!(errors.to_string().lines().count(), wanted.len());
    assert_eq!(errors.kind(), kind::UNKNOWN_KEY);
}

#[test]
fn a_long_list_of_mistakes_is_truncated() {
    let text: String = (0..1500).map(|n| format!("key{n} = {n}\n")).collect();
    let errors = parse_toml(&text, "x").unwrap_err();
    assert_eq!(errors.errors().len(), 1001);
    assert!(errors.to_string().ends_with("x: 500 more problems are not shown"));
}

#[test]
fn a_syntax_error_has_its_line() {
    let problem = problem("[switch]\npoll = = \"busy\"\n");
    assert_eq!((problem.line, problem.column, problem.kind), (Some(2), Some(8), kind::SYNTAX), "{problem}");
    assert!(problem.to_string().starts_with("vms.toml:2:8: "), "{problem}");
    let errors = parse_json("{\n \"switch\": }", "request").unwrap_err();
    assert!(errors.to_string().starts_with("request:2:12: "), "{errors}");
}

#[test]
fn json_is_checked_like_toml() {
    let good = r#"{"networks": [{"id": "net1", "mtu": null}],
        "vms": [{"id": "a", "ports": [{"port_id": "p1", "network_id": "net1", "mac_address": "02:00:00:00:00:01",
        "device": {"kind": "tap"}}]}]}"#;
    let config = parse_json(good, "request").unwrap();
    assert_eq!(config.networks, [Network::new("net1")]);
    let errors = parse_json(&good.replace("02:00:00:00:00:01", "x"), "request").unwrap_err();
    assert_eq!(
        errors.to_string(),
        "request: vms[0].ports[0].mac_address = \"x\": not a MAC address; one looks like 02:00:00:00:01:0a \
         (VM \"a\", port \"p1\")"
    );
    for other in ["[]", "7", "null"] {
        let errors = parse_json(other, "request").unwrap_err();
        assert!(errors.to_string().starts_with("request: expected "), "{errors}");
    }
}

#[test]
fn errors_between_tables_are_reported() {
    // Of two uplinks of a group that must carry the same networks, the second is reported; a missing network is
    // reported wherever it is named.
    let text = spoilt("{ network_id = \"net2\" }, {", "{ network_id = \"net2\", vlan = 7 }, {");
    let problem = problem(&text);
    assert_eq!((problem.key.as_str(), problem.kind), ("uplinks[1].networks", kind::CONTRADICTION), "{problem}");
    assert!(problem.message.contains("uplinks[0] (line 51)"), "{problem}");
    assert_eq!(problem.owner.as_deref(), Some("uplink \"up1\""));
    // Groups of one have no backup: a warning, as the second one may come later.
    let alone = parse_toml(&spoilt("group    = \"wire\"", "group    = \"other\""), "x").unwrap().lint();
    let about: Vec<_> =
        alone.iter().filter(|of| of.message.contains("no backup")).map(|of| of.about.as_str()).collect();
    assert_eq!(about, ["uplink \"up0\"", "uplink \"up1\""], "{alone:?}");
    let errors = parse_toml(&EXAMPLE.replace("\"net1\", vlan", "\"net3\", vlan"), "x").unwrap_err();
    let found: Vec<_> = errors.errors().iter().map(|problem| (problem.key.as_str(), problem.kind)).collect();
    let unknown = ["uplinks[0].networks[0].network_id", "uplinks[1].networks[1].network_id"];
    assert_eq!(found, unknown.map(|key| (key, kind::UNKNOWN_NETWORK)), "{errors}");
    let third = format!("{EXAMPLE}[[uplinks]]\nid = \"up2\"\ngroup = \"wire\"\ndevice = {{ kind = \"tap\" }}\n");
    let third = third + "networks = [{ network_id = \"net2\" }, { network_id = \"net1\", vlan = 120 }]\n";
    let errors = parse_toml(&third, "x").unwrap_err();
    let [problem] = errors.errors() else { panic!("{errors}") };
    assert_eq!((problem.key.as_str(), problem.kind), ("uplinks[2].group", kind::CONTRADICTION), "{problem}");
}

/// Shows: REQ-04
#[test]
fn a_mac_address_is_unique_per_network() {
    assert!(parse_toml(EXAMPLE, "x").is_ok());
    let problem = problem(&spoilt("network_id  = \"net2\"", "network_id = \"net1\""));
    assert_eq!((problem.kind, problem.key.as_str()), (kind::DUPLICATE_MAC, "vms[1].ports[0].mac_address"));
}

#[test]
fn siblings_are_unlimited_and_keep_their_order() {
    let mut text = "[[networks]]\nid = \"net1\"\n[[vms]]\nid = \"vm\"\n".to_string();
    let order = [7, 2, 5, 1, 8, 3, 6, 4];
    for n in order {
        text += &format!("[[vms.ports]]\nport_id = \"p{n}\"\nnetwork_id = \"net1\"\n");
        text += &format!("mac_address = \"02:00:00:00:00:0{n}\"\ndevice = {{ kind = \"tap\" }}\n");
    }
    let config = parse_toml(&text, "x").unwrap();
    let found: Vec<_> = config.vms[0].ports.iter().map(|port| port.port_id.clone()).collect();
    assert_eq!(found, order.map(|n| format!("p{n}")));
}

#[test]
fn disabled_settings_stay_disabled() {
    let config =
        parse_toml("[switch]\nstate = \"\"\ncores = []\n[[networks]]\nid = \"n\"\nfdb_limit = 10", "x").unwrap();
    assert_eq!((config.switch.state.as_ref(), config.switch.metrics, config.switch.cores.len()), (None, None, 0));
    // a small network needs no second key
    assert_eq!((config.networks[0].fdb_limit, config.networks[0].fdb_limit_per_port), (10, 10));
}

#[test]
fn files_are_parsed_by_their_extension() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let load = |path: PathBuf| config::load_file(path).map(|file| file.config);
    let config = load(write("a.toml", EXAMPLE.as_bytes())).unwrap();
    assert_eq!(load(write("a.json", &serde_json::to_vec(&config).unwrap())), Ok(config));
    let kind = |result: Result<Config, ConfigErrors>| result.unwrap_err().kind();
    assert_eq!(kind(load(write("b.toml", b"a = \"\xff\""))), kind::UNREADABLE);
    assert_eq!(kind(load(dir.path().join("missing.toml"))), kind::UNREADABLE);
    let error = load(dir.path().join("missing.toml")).unwrap_err().to_string();
    assert!(error.contains("missing.toml: cannot be read: "), "{error}");
}

/// Parsing succeeds or returns errors, and never panics.
fn is_judged(result: Result<Config, ConfigErrors>) {
    if let Err(errors) = result {
        assert!(!errors.errors().is_empty());
        let shown = errors.to_string();
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    }
}

/// Texts that are nearly configurations.
fn nearly() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(&[
        "[switch]",
        "[[networks]]",
        "[[vms]]",
        "[[vms.ports]]",
        "id",
        "port_id",
        "device",
        "mtu",
        "=",
        "=",
        "\"a\"",
        "1",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\n",
        "\n",
        "true",
        "1.5",
        "\"\"",
        "1979-05-27",
        "{}",
        "[[1], 2]",
        "switch.poll",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|chunks| chunks.join(" "))
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in prop_oneof![".{0,200}", "(?s).{0,200}", nearly()]) {
        is_judged(parse_toml(&text, "x"));
        is_judged(parse_json(&text, "x"));
    }

    #[test]
    fn any_json_is_parsed_or_refused(keys in prop::collection::vec("switch|networks|vms|[^\"\\\\]{0,5}", 0..4), value in "-?[1-9]{1,30}|\"x\"|null|\\[null, 1\\]|\\[\\{\\}\\]|\\{\"id\": 1\\}|\\[\\{\"ports\": \\[\\{\\}, 1\\]\\}\\]") {
        let entries: Vec<_> = keys.iter().map(|key| format!("{key:?}: {value}")).collect();
        is_judged(parse_json(&format!("{{{}}}", entries.join(",")), "x"));
    }

    #[test]
    fn any_typing_error_is_parsed_or_refused(at in any::<prop::sample::Index>(), c in any::<char>(), what in 0..3) {
        let places: Vec<_> = EXAMPLE.char_indices().collect();
        let (at, old) = places[at.index(places.len())];
        let end = if what == 0 { at } else { at + old.len_utf8() };
        let new = if what == 1 { String::new() } else { c.to_string() };
        is_judged(parse_toml(&format!("{}{new}{}", &EXAMPLE[..at], &EXAMPLE[end..]), "x"));
    }
}

#[test]
fn any_changed_character_is_parsed_or_refused() {
    for (at, old) in EXAMPLE.char_indices() {
        for new in ["", "x", "0", "\"", "]", "\n"] {
            is_judged(parse_toml(&format!("{}{new}{}", &EXAMPLE[..at], &EXAMPLE[at + old.len_utf8()..]), "x"));
        }
    }
}

/// Storm limits can be set in four places; the nearest applies.
#[test]
fn the_nearest_storm_limit_applies() {
    const TEXT: &str = r#"
        [[networks]]
        id = "net1"
        storm = { broadcast = { pps = 700 }, multicast = { bps = 8_000_000, action = "drop" } }
        [[networks]]
        id = "net2"
        storm = "off"
        [[vms]]
        id = "a"
        storm = { unknown_unicast = { pps = 50, burst = 5, action = "disable", recovery_seconds = 0 }, copies = { pps = 9 } }
        [[vms.ports]]
        port_id = "p1"
        network_id = "net1"
        mac_address = "02:00:00:00:00:01"
        storm = { multicast = "off", broadcast = { pps = 1000, bps = 8000 } }
        device = { kind = "tap" }
        [[vms.ports]]
        port_id = "p2"
        network_id = "net2"
        mac_address = "02:00:00:00:00:02"
        device = { kind = "tap" }
        [[uplinks]]
        id = "up0"
        networks = [{ network_id = "net1" }]
        device = { kind = "xdp", name = "eth1" }
        [[uplinks]]
        id = "up1"
        networks = [{ network_id = "net2" }]
        storm = { broadcast = { pps = 100 } }
        device = { kind = "xdp", name = "eth2" }
    "#;
    let config = parse_toml(TEXT, "x").unwrap();
    let frames = |rate, burst| Some(ClassLimit::frames(Rate::new(rate, burst)));
    let bytes = |rate, burst| Some(Rate::new(rate, burst));
    let vm = &config.vms[0];
    let port = |index: usize| config.storm_of_port(&vm.ports[index]);
    let of_vm = |index: usize| config.storm_of_vm(vm, &config.networks[index]);
    // Per class: broadcast, multicast, unknown unicast. A class is taken as a whole from the nearest place; the burst
    // defaults to one second of the rate, and in bytes at least to the longest frame.
    let p1 = [Some(ClassLimit { frames: bytes(1000, 1000), bytes: bytes(1000, 9238) }), None, frames(1000, 1000)];
    assert_eq!(port(0).limits().0, p1);
    assert_eq!(port(1).limits(), StormLimits::OFF);
    let multicast = Some(ClassLimit { frames: None, bytes: bytes(1_000_000, 1_000_000) });
    assert_eq!(of_vm(0).limits().0, [frames(700, 700), multicast, frames(50, 5)]);
    assert_eq!((of_vm(0).copies(), of_vm(1).copies()), (bytes(9, 9), bytes(9, 9)));
    assert_eq!(of_vm(1).limits().0, [None, None, frames(50, 5)]);
    assert_eq!(config.networks[1].storm.copies(), None);
    let does = |storm: &Storm, class| storm.limit(class).map(|limit| (limit.action, limit.recovery_seconds));
    assert_eq!(does(&of_vm(0), StormClass::UnknownUnicast), Some((StormAction::Disable, 0)));
    assert_eq!(does(&of_vm(0), StormClass::Multicast), Some((StormAction::Drop, 300)));
    assert_eq!(does(&of_vm(0), StormClass::Broadcast), Some((StormAction::DropEvent, 300)));
    assert_eq!(config.storm_of_uplink(&config.uplinks[0]), Storm::OFF);
    assert_eq!(config.storm_of_uplink(&config.uplinks[1]).limits().0, [frames(100, 100), None, None]);
    // Classes set nowhere have their default.
    assert_eq!(Network::new("n").storm.limits(), StormLimits::VM_DEFAULT);
    assert_eq!(Network::new("n").storm.copies(), Some(Rate::new(100_000, 10_000)));
}
