//! Recommends device kinds for a netdev, before anything is bound. Reads its attributes; changes nothing.

use std::fmt;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::vxlan::{self, Tunnel};
use super::xdp::tags::{self, TagCapabilities, TagLocation};
use super::{DeviceLocation, OpenError, foreign, packet, properties, tap, xdp};
use crate::sys::link::{self, Found, Link, Peer};
use crate::sys::link_events::LinkState;
use crate::sys::netdev::{self, XdpFeatures};
use crate::sys::netns::Netns;
use crate::sys::privileges::{self, Privilege};
use crate::sys::stack::{self, HostStack};
use crate::sys::{bpf, ethtool};

/// Attributes of a netdev.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Attributes by rtnetlink.
    pub link: Link,
    /// The other end of a veth.
    pub peer: Option<Peer>,
    /// Driver name, if reported.
    pub driver: Option<String>,
    /// Number of receive queues, if reported.
    pub queues: Option<u32>,
    /// XDP features of the driver, if reported.
    pub features: Option<XdpFeatures>,
    /// The attached XDP program belongs to a vifswitch, which uses the netdev.
    pub own_program: bool,
    /// Reactions of the namespace's network stack to received frames.
    pub stack: HostStack,
    /// Treatment of VLAN tags.
    pub tags: TagCapabilities,
    /// VXLAN netdevs that its frames pass.
    pub tunnels: Vec<Tunnel>,
}

impl Facts {
    /// Why AF_XDP may lose a frame's VLAN tag; `None`: it does not.
    fn tags_lost(&self) -> Option<String> {
        let native = self.features.is_none_or(|can| can.native() && can.redirect());
        match self.tags.decide(native) {
            TagLocation::MayBeLost(why) => Some(why),
            TagLocation::InFrame | TagLocation::Metadata(_) | TagLocation::InFrameWithout(_) => None,
        }
    }
}

/// Prediction for one kind of device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KindReport {
    /// Keyword in the configuration: `tap`, `xdp`, `packet`.
    pub kind: &'static str,
    /// Whether it would work.
    pub usable: bool,
    /// Number of queues.
    pub queues: u32,
    /// Whether partial checksums and GSO packets pass.
    pub offloads: bool,
    /// The mode and why no better one; or why the kind does not work.
    pub why: String,
}

/// Report about a netdev.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name.
    pub device: String,
    /// Network namespace; `None` for the host's.
    pub netns: Option<String>,
    /// Why no kind works; `None` if one does.
    pub problem: Option<String>,
    /// Driver name, if reported.
    pub driver: Option<String>,
    /// MTU in bytes; `None` if the netdev does not exist.
    pub mtu: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Carrier present.
    pub carrier: bool,
    /// Prediction per kind.
    pub kinds: Vec<KindReport>,
    /// Preferred kind, if any works.
    pub prefer: Option<&'static str>,
    /// Reason for the preference.
    pub because: Option<&'static str>,
    /// What the underlays of its VXLAN netdevs let pass.
    pub underlays: Vec<String>,
    /// Warnings for the operator.
    pub warnings: Vec<String>,
}

impl Report {
    /// Whether the netdev exists and a kind would work.
    pub fn is_usable(&self) -> bool {
        self.problem.is_none() && self.prefer.is_some()
    }

    fn without(location: &DeviceLocation, problem: String) -> Report {
        Report {
            device: location.device.clone(),
            netns: location.netns.path().map(|path| path.display().to_string()),
            problem: Some(problem),
            driver: None,
            mtu: None,
            up: false,
            carrier: false,
            kinds: Vec::new(),
            prefer: None,
            because: None,
            underlays: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns) => writeln!(f, "{} in {netns}", self.device)?,
            None => writeln!(f, "{}", self.device)?,
        }
        if let Some(problem) = &self.problem {
            writeln!(f, "  unusable   {problem}")?;
        }
        if let Some(mtu) = self.mtu {
            let driver = self.driver.as_deref().unwrap_or("unknown");
            let up = if self.up { "up" } else { "down" };
            let carrier = if self.carrier { "carrier" } else { "no carrier" };
            writeln!(f, "  netdev     driver {driver}, MTU {mtu}, {up}, {carrier}")?;
        }
        for KindReport { kind, usable, queues, offloads, why } in &self.kinds {
            if *usable {
                let passes = if *offloads { "offloads pass" } else { "no offloads" };
                writeln!(f, "  {kind:<9}  yes, queues {queues}, {passes}: {why}")?;
            } else {
                writeln!(f, "  {kind:<9}  no: {why}")?;
            }
        }
        if let Some((prefer, because)) = self.prefer.zip(self.because) {
            writeln!(f, "  prefer     {prefer}: {because}")?;
        }
        self.underlays.iter().try_for_each(|underlay| writeln!(f, "  underlay   {underlay}"))?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "  warning    {warning}"))
    }
}

/// Inspects a netdev. Changes nothing. May block.
pub fn inspect(location: &DeviceLocation) -> Report {
    let facts = foreign::in_namespace(location, || {
        let found = link::find_each(&[(&location.device, None)]).pop().unwrap_or(Ok(None));
        let found = found.map_err(foreign::failed(location, "finding the netdev"))?;
        let Found { link, peer, .. } = found.ok_or_else(|| OpenError::NoDevice { at: location.clone() })?;
        let queues =
            ethtool::receive_queues(&location.device).map_err(foreign::failed(location, "reading its queues"))?;
        // Unknown if they cannot be read.
        let features = netdev::xdp_features(link.index).ok().flatten();
        let tags = TagCapabilities::of(&location.device, &link);
        let own_program = link.xdp.is_some_and(|attached| bpf::is_ours(attached.program).unwrap_or(false));
        let stack = stack::host_stack(&location.device, link.index, &stack::addresses().unwrap_or_default());
        // The netdev of a tap receives what its port sends.
        let bridge = if link.tap.is_some() { link.master } else { peer.as_ref().map_or(0, |peer| peer.master) };
        let (tunnels, driver) = (vxlan::find(&location.device, &link, bridge), ethtool::driver(&location.device));
        Ok(Facts { queues, features, driver, tags, own_program, stack, link, peer, tunnels })
    });
    let mut report = match facts {
        Ok(facts) => decide(location, &facts),
        Err(OpenError::NoDevice { .. }) => {
            let mut report = Report::without(location, "no such device".into());
            report.warnings.push("the name is free: a port with kind = tap would create it".into());
            report
        }
        Err(OpenError::NoNamespace { .. }) => Report::without(location, "no such namespace".into()),
        Err(why) => Report::without(location, why.to_string()),
    };
    let missing = needed(&location.netns).into_iter().filter(|privilege| !privilege.is_held());
    report
        .warnings
        .extend(missing.map(|privilege| format!("{} is missing; without it, {}", privilege.name, privilege.without)));
    report
}

fn needed(netns: &Netns) -> Vec<Privilege> {
    let mut needed = vec![privileges::NET_ADMIN, privileges::NET_RAW];
    needed.extend(getrlimit(Resource::Memlock).current.map(|_| privileges::IPC_LOCK));
    needed.extend((*netns != Netns::Host).then_some(privileges::SYS_ADMIN));
    needed.extend((!privileges::SYS_ADMIN.is_held()).then_some(privileges::BPF));
    let by_process = matches!(netns, Netns::At(path) if path.starts_with(Path::new("/proc")));
    needed.extend(by_process.then_some(privileges::SYS_PTRACE));
    needed
}

/// Derives the report from the attributes.
pub fn decide(location: &DeviceLocation, facts: &Facts) -> Report {
    let link = &facts.link;
    if !link.ethernet {
        return Report::without(location, "not an Ethernet device; choose another one".into());
    }
    let kinds = vec![as_tap(facts), as_xdp(facts), as_packet(facts)];
    let (prefer, because) = prefer(facts, &kinds);
    let mut warnings = Vec::new();
    if !link.up {
        warnings.push(format!(
            "it is down; xdp and packet wait until it is up; set it up there with `ip link set dev {} up`",
            location.device
        ));
    } else if !link.carrier {
        warnings.push("it has no carrier; xdp and packet wait for its peer".into());
    }
    if let Some(own) = link.xdp.filter(|_| facts.own_program) {
        warnings.push(format!(
            "its XDP program ({}, id {}) is that of a vifswitch, which uses the netdev; leave it attached",
            own.mode.option(),
            own.program
        ));
    } else if let Some(other) = link.xdp {
        warnings.push(format!(
            "{other} is attached; end its owner or, if that has ended, detach it: ip link set dev {} {} off, or \
             replace_xdp_program = true",
            location.device,
            other.mode.option()
        ));
    }
    warnings.extend(xdp::lost_offloads(link));
    let oversize = properties::oversize_packets(&LinkState::from(link), &location.device, facts.peer.as_ref());
    warnings.extend(oversize.into_iter().map(|said| format!("with kind = packet {said}")));
    let shared = properties::shared_with(&facts.stack, &location.device);
    warnings.extend(shared.map(|said| format!("with kind = packet {said}")));
    warnings.extend(facts.tags_lost().map(|why| format!("with kind = xdp {}", tags::warning(&why))));
    Report {
        driver: facts.driver.clone(),
        mtu: Some(link.mtu),
        up: link.up,
        carrier: link.carrier,
        kinds,
        prefer: Some(prefer),
        because: Some(because),
        underlays: facts.tunnels.iter().map(|tunnel| tunnel.report(location)).collect(),
        warnings,
        problem: None,
        ..Report::without(location, String::new())
    }
}

fn as_tap(Facts { link, .. }: &Facts) -> KindReport {
    let (usable, why) = match link.tap {
        None => (false, "it is no tap, and the name is in use".to_owned()),
        Some(tap) if tap::is_in_use(link, tap) => match link.alias.strip_prefix(tap::OURS) {
            Some(port) => (false, format!("in use by a vifswitch, for port {port:?}")),
            None => (false, "in use by another process".to_owned()),
        },
        Some(_) => (true, "it is a tap with a free queue".to_owned()),
    };
    KindReport { kind: "tap", usable, queues: u32::from(usable), offloads: usable, why }
}

fn as_xdp(facts: &Facts) -> KindReport {
    let Facts { link, driver, queues, features, .. } = facts;
    let queues = queues.or(link.tap.map(|tap| tap.queues)).unwrap_or(1).max(1);
    let driver = driver.as_deref().unwrap_or("its driver");
    let too_long = features.and_then(|can| xdp::exceeds_one_page(link, driver, can));
    let (usable, why) = match features {
        _ if link.xdp.is_some() && !facts.own_program => (false, "a foreign XDP program is attached".to_owned()),
        None => (true, "the kernel does not report the driver's XDP features; each mode is tried in turn".to_owned()),
        Some(can) if !can.native() => (true, format!("generic copy, as {driver} runs no XDP programs")),
        Some(_) if too_long.is_some() => (false, too_long.unwrap_or_default()),
        Some(can) if !can.redirect() => {
            (true, format!("with mode = generic only, as {driver} does not support XDP_REDIRECT"))
        }
        Some(can) if can.zero_copy() => {
            (true, format!("zero-copy is tried first, as {driver} reports it; else native copy"))
        }
        Some(_) => (true, format!("native copy, as {driver} has no zero-copy")),
    };
    let why = if facts.own_program { format!("in use by a vifswitch; {why}") } else { why };
    KindReport { kind: "xdp", usable, queues, offloads: false, why }
}

fn as_packet(Facts { link, .. }: &Facts) -> KindReport {
    let why = format!(
        "packet sockets work with every Ethernet device; frames may have one tag of 802.1Q; full-size frames with two tags, or \
         one of 802.1ad, need an MTU of {}",
        packet::mtu_for_two_tags(link.mtu, packet::OuterTag::Any)
    );
    KindReport { kind: "packet", usable: true, queues: 1, offloads: true, why }
}

fn prefer(facts: &Facts, kinds: &[KindReport]) -> (&'static str, &'static str) {
    let Facts { link, driver, features, .. } = facts;
    let usable = |kind: &str| kinds.iter().any(|prospect| prospect.kind == kind && prospect.usable);
    match features {
        _ if usable("tap") => ("tap", "it is free, and GSO packets pass whole"),
        _ if !usable("xdp") => ("packet", "the other kinds do not work now"),
        _ if link.tap.is_some_and(|tap| tap.vnet_header) => ("packet", "the guest's offloads pass, unlike with AF_XDP"),
        _ if driver.as_deref() == Some("veth") => {
            ("packet", "the peer's stack may send partial checksums, which AF_XDP cannot complete")
        }
        _ if facts.tags_lost().is_some() => ("packet", "it sees the VLAN tag of every frame, which AF_XDP may lose"),
        Some(can) if can.native() && can.redirect() => ("xdp", "the driver runs the program: fastest for small frames"),
        Some(_) => ("packet", "generic AF_XDP is no faster, and offloads do not pass"),
        None => ("packet", "it works in any case, and offloads pass; xdp may be faster for small frames"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::link::{Attached, TapInfo, XdpMode};

    fn reported(facts: &Facts) -> Report {
        decide(&DeviceLocation { device: "d0".into(), netns: Netns::Host }, facts)
    }

    /// A NIC that is up.
    fn nic(features: Option<u64>) -> Facts {
        let link = Link { index: 2, ethernet: true, mtu: 1500, up: true, carrier: true, ..Link::default() };
        let tags = TagCapabilities { hardware: true, ..TagCapabilities::default() };
        let features = features.map(XdpFeatures);
        Facts { link, driver: Some("ice".into()), queues: Some(4), features, tags, ..Facts::default() }
    }

    fn xdp(facts: &Facts) -> (bool, String) {
        let KindReport { usable, why, .. } = as_xdp(facts);
        (usable, why)
    }

    #[test]
    fn the_mode_follows_from_driver_features() {
        for (features, prefer, piece) in [
            (Some(0), "packet", "generic copy"),
            (Some(1), "packet", "mode = generic"),
            (Some(3), "xdp", "ice has no zero-copy"),
            (Some(11), "xdp", "zero-copy is tried first"),
            (None, "packet", "tried in turn"),
        ] {
            let facts = nic(features);
            let (usable, why) = xdp(&facts);
            assert!(usable && why.contains(piece), "{features:?}: {why}");
            assert_eq!(reported(&facts).prefer, Some(prefer), "{features:?}");
        }
        assert_eq!(as_xdp(&nic(None)).queues, 4);
    }

    #[test]
    fn long_frames_need_multi_buffer_support() {
        let mut facts = nic(Some(3));
        facts.link.mtu = 9000;
        assert!(!xdp(&facts).0);
        assert_eq!(reported(&facts).prefer, Some("packet"));
        facts.features = Some(XdpFeatures(3 | 32));
        assert!(xdp(&facts).0);
        facts.features = Some(XdpFeatures(3));
        facts.link.tap = Some(TapInfo::default());
        assert!(xdp(&facts).0);
    }

    #[test]
    fn the_mtu_for_two_tags_is_that_of_the_warning_on_refused_frames() {
        let settings = crate::device::Settings::Packet(packet::Settings {
            name: "d0".into(),
            netns: Netns::Host,
            offloads: true,
            isolate: false,
            mtu: 1500,
            owner: "p".into(),
        });
        let facts = nic(None);
        let now = properties::Properties {
            name: "d0".into(),
            link: LinkState::from(&facts.link),
            ..properties::Properties::default()
        };
        let refusals = properties::refusals(&settings, &now).unwrap();
        assert!(as_packet(&facts).why.contains("need an MTU of 1508"), "{}", as_packet(&facts).why);
        assert!(refusals.contains("mtu 1508`"), "{refusals}");
    }

    #[test]
    fn gro_beyond_64_kib_is_a_warning_for_packet_sockets() {
        let mut facts = nic(Some(11));
        assert!(!reported(&facts).to_string().contains("64 KiB"));
        facts.link.gro_max_size = 185_000;
        let said = reported(&facts).to_string();
        assert!(said.contains("with kind = packet it has gro_max_size 185000"), "{said}");
        assert!(said.contains("`ip link set dev d0 gro_max_size 65536`"), "{said}");
    }

    #[test]
    fn a_foreign_program_is_reported_with_its_remedy() {
        let mut facts = nic(Some(11));
        facts.link.xdp = Some(Attached { mode: XdpMode::Generic, program: 7 });
        let report = reported(&facts);
        assert_eq!((xdp(&facts).0, report.prefer), (false, Some("packet")));
        assert!(
            report.warnings.iter().any(|warning| warning.contains("ip link set dev d0 xdpgeneric off")),
            "{report}"
        );
    }

    #[test]
    fn a_program_of_a_running_switch_is_recognised() {
        let mut facts = nic(Some(11));
        facts.link.xdp = Some(Attached { mode: XdpMode::Native, program: 7 });
        facts.own_program = true;
        let report = reported(&facts);
        assert!(xdp(&facts).0 && xdp(&facts).1.contains("in use by a vifswitch"), "{report}");
        let said = report.to_string();
        assert!(
            said.contains("is that of a vifswitch") && !said.contains("off,") && !said.contains("replace_xdp_program"),
            "{said}"
        );
    }

    #[test]
    fn the_host_stack_is_warned_of_with_the_remedy() {
        let mut facts = nic(Some(11));
        assert!(!reported(&facts).to_string().contains("network stack"));
        facts.stack = HostStack { ipv6: true, autoconfigures: true, ..HostStack::default() };
        let said = reported(&facts).to_string();
        assert!(said.contains("router advertisements") && said.contains("isolate = true"), "{said}");
        assert!(said.contains("net.ipv6.conf.d0.disable_ipv6=1") && !said.contains("arp_ignore"), "{said}");
    }

    #[test]
    fn a_tap_with_virtio_net_hdr_is_warned_of() {
        for vnet_header in [false, true] {
            let mut facts = nic(Some(3));
            facts.link.tap = Some(TapInfo { vnet_header, multi_queue: true, queues: 2, ..TapInfo::default() });
            let report = reported(&facts);
            assert_eq!(report.prefer, Some(if vnet_header { "packet" } else { "xdp" }), "{report}");
            assert_eq!(report.to_string().contains("XDP hook"), vnet_header, "{report}");
        }
    }

    #[test]
    fn where_tags_may_be_lost_packet_is_preferred() {
        let mut facts = nic(Some(3));
        facts.tags = TagCapabilities { strips: vec!["rx-vlan-hw-parse"], driver: facts.driver.clone(), ..facts.tags };
        let report = reported(&facts);
        assert_eq!((xdp(&facts).0, report.prefer), (true, Some("packet")), "{report}");
        assert!(report.to_string().contains("ice strips VLAN tags"), "{report}");
        facts.tags.can_stop = true;
        assert_eq!(reported(&facts).prefer, Some("xdp"));
    }

    #[test]
    fn a_netdev_without_ethernet_is_unusable() {
        assert!(!reported(&Facts::default()).is_usable());
        let mut facts = nic(Some(3));
        facts.link.up = false;
        let report = reported(&facts);
        assert!(report.is_usable() && report.to_string().contains("ip link set dev d0 up"), "{report}");
    }
}
