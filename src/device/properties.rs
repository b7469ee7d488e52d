//! Properties of a netdev that a port depends on. They are read when its device is opened and whenever they may have
//! changed, and compared with the port's settings. Reads rtnetlink, ethtool and sysctls; [`restore`] changes netdevs.
//!
//! The reaction to a difference depends on the owner of the netdev:
//!
//! | netdev | property | reaction |
//! |---|---|---|
//! | created by the switch, in the host's namespace | MAC address, MTU, link state | restored |
//! | created by the switch, in another namespace | all | reported: its owner may change them |
//! | any tap | name | reported |
//! | any tap, but of an uplink | master | reported |
//! | any, with VXLAN | its MTU and that of the underlay | reported |
//! | foreign (`packet`, `xdp`) | MTU, link state, queues | followed: the device is reopened |
//! | foreign | offload features, limits of GSO packets | followed while open (`packet`) |
//! | foreign | MAC address, master | reported |

use std::io;

use super::vxlan::{self, Tunnel};
use super::{MAX_GSO_SIZE, OpenError, Settings, packet, tap};
use crate::sys::ethtool;
use crate::sys::link::{self, Peer};
use crate::sys::link_events::LinkState;
use crate::sys::netns::{Netns, within};
use crate::sys::stack::{self, HostStack};
use crate::wire::OffloadSet;

/// Properties of a netdev.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    /// Current name; may differ from the one at opening.
    pub name: String,
    /// Index, link state, MTU, MAC address, limits of GSO packets.
    pub link: LinkState,
    /// Name of its master (bridge, bond).
    pub master: Option<String>,
    /// Number of receive queues. `None` if unknown, or for kinds that do not depend on it.
    pub queues: Option<u32>,
    /// Reactions of the namespace's network stack to received frames. For `packet` without `isolate`; else empty.
    pub stack: HostStack,
    /// The other end of a veth. For `packet`.
    pub peer: Option<Peer>,
    /// VXLAN netdevs that its frames pass.
    pub tunnels: Vec<Tunnel>,
    /// Offloads accepted for transmit. For `packet`; `None` if they cannot be read.
    pub offloads: Option<OffloadSet>,
    /// Active offload features that the kind of device depends on. `None` if they cannot be read: the netdev may be vanishing.
    pub features: Option<Vec<String>>,
}

/// A netdev to read.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Device of a port.
    pub settings: Settings,
    /// Interface index to find it by, whatever its current name; `None`: by name.
    pub index: Option<u32>,
}

/// Reads the properties of netdevs in the calling thread's namespace. May block. `None`: the netdev does not exist.
pub fn read_each(wanted: &[Wanted]) -> Vec<io::Result<Option<Properties>>> {
    let names: Vec<_> = wanted.iter().map(|Wanted { settings, index }| (settings.name(), *index)).collect();
    let found = link::find_each(&names);
    let is_shared = |settings: &Settings| matches!(settings, Settings::Packet(packet) if !packet.isolate);
    let addresses = match wanted.iter().any(|wanted| is_shared(&wanted.settings)) {
        true => stack::addresses(),
        false => Ok(Vec::new()),
    };
    let read = |(found, wanted): (io::Result<Option<link::Found>>, &Wanted)| {
        let Some(found) = found? else { return Ok(None) };
        let stack = match &addresses {
            _ if !is_shared(&wanted.settings) => HostStack::default(),
            Ok(addresses) => stack::host_stack(&found.name, found.link.index, addresses),
            Err(why) => return Err(io::Error::new(why.kind(), why.to_string())),
        };
        Ok(Some(Properties { stack, ..Properties::of(&wanted.settings, found) }))
    };
    found.into_iter().zip(wanted).map(read).collect()
}

/// Reads the properties of a device's netdev, in its namespace.
pub fn read(settings: &Settings) -> io::Result<Option<Properties>> {
    let wanted = [Wanted { settings: settings.clone(), index: None }];
    within(settings.netns(), || read_each(&wanted))?.pop().unwrap_or(Ok(None))
}

/// Properties at opening, from those read before and after it.
pub fn when_opened(settings: &Settings, before: Option<Properties>, after: Option<Properties>) -> Option<Properties> {
    match (settings, before, after) {
        // Features that opening itself has turned off are no change.
        (Settings::Xdp(_), Some(before), Some(after)) => {
            Some(Properties { features: after.features.or(before.features), ..before })
        }
        (_, None, after) => after,
        // A later change may not have been in effect yet.
        (_, before, _) => before,
    }
}

impl Properties {
    fn of(settings: &Settings, found: link::Found) -> Properties {
        let link::Found { name, link, master, peer } = found;
        // Unknown values are not compared.
        let queues = match settings {
            Settings::Xdp(_) => ethtool::receive_queues(&name).unwrap_or(None).or(link.tap.map(|tap| tap.queues)),
            Settings::Tap(_) | Settings::Packet(_) => None,
        };
        let features = is_relevant(settings).and_then(|is_relevant| {
            let features = ethtool::features(&name).ok()?;
            Some(features.active().filter(|name| is_relevant(name)).map(str::to_owned).collect())
        });
        let queues = queues.filter(|&queues| queues > 0);
        let offloads = match settings {
            Settings::Packet(packet) => packet::egress_set(packet, &link).ok(),
            Settings::Tap(_) | Settings::Xdp(_) => None,
        };
        let bridge = match settings {
            // The netdev receives what the switch sends.
            Settings::Tap(_) => link.master,
            Settings::Packet(_) | Settings::Xdp(_) => peer.as_ref().map_or(0, |peer| peer.master),
        };
        let tunnels = vxlan::find(&name, &link, bridge);
        let peer = peer.filter(|_| matches!(settings, Settings::Packet(_)));
        let link = LinkState::from(&link);
        Properties { name, link, master, peer, tunnels, queues, offloads, features, stack: HostStack::default() }
    }

    /// With earlier values of what could not be read this time, so that the next reading is compared with them.
    pub fn or_known(self, was: &Properties) -> Properties {
        let (queues, features) = (self.queues.or(was.queues), self.features.or_else(|| was.features.clone()));
        Properties { queues, features, ..self }
    }
}

/// Selects the offload features that a device of this kind depends on; `None`: none.
fn is_relevant(settings: &Settings) -> Option<fn(&str) -> bool> {
    match settings {
        Settings::Tap(_) => None,
        // Offloads on transmit.
        Settings::Packet(_) => Some(|feature| feature.starts_with("tx-") && !feature.contains("vlan")),
        // Stripping of VLAN tags on receive.
        Settings::Xdp(_) => Some(|feature| feature.starts_with("rx-vlan") && feature.ends_with("-parse")),
    }
}

/// Why a device on a foreign netdev has to be reopened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outdated {
    /// What has become of the netdev.
    pub kind: OutdatedKind,
    /// Cause and remedy.
    pub text: String,
}

/// What has become of a netdev whose device has to be reopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutdatedKind {
    /// It does not exist.
    Gone,
    /// It is set down.
    LinkDown,
    /// It is another one, or has other properties.
    Changed,
}

/// Why a device on a foreign netdev has to be reopened; `None`: it need not. `was`: the properties at opening.
pub fn outdated(settings: &Settings, was: Option<&Properties>, now: Option<&Properties>) -> Option<Outdated> {
    let name = settings.name();
    if !settings.is_foreign() {
        return None;
    }
    let because = |kind, text: String| Some(Outdated { kind, text });
    let Some(now) = now else {
        return because(OutdatedKind::Gone, "its netdev is gone; the device is reopened when it is back".into());
    };
    if !now.link.up {
        let text = format!("link is down; set it up with `ip link set dev {name} up`; the device is reopened then");
        return because(OutdatedKind::LinkDown, text);
    }
    let text = changed(settings, was?, now)?;
    because(OutdatedKind::Changed, text)
}

/// Why a device has to be reopened on a netdev that is up.
fn changed(settings: &Settings, was: &Properties, now: &Properties) -> Option<String> {
    if was.link.index != now.link.index {
        return Some("its netdev was replaced by another one of the same name; reopening".into());
    }
    if was.link.mtu != now.link.mtu {
        return Some(format!("the MTU of its netdev was {} and is {}; reopening", was.link.mtu, now.link.mtu));
    }
    if let (Some(was), Some(now)) = (was.queues, now.queues)
        && was != now
    {
        return Some(format!("its netdev had {was} receive queues and has {now}; reopening to bind all of them"));
    }
    // Stripping was turned on. Turning it off loses no tags.
    let is_xdp = matches!(settings, Settings::Xdp(_));
    let stripped = missing(now.features.as_ref()?, was.features.as_ref()?).find(|_| is_xdp)?;
    Some(format!("its netdev now strips VLAN tags ({stripped} on); reopening"))
}

/// Features in `of` that are not in `from`.
fn missing<'a>(of: &'a [String], from: &'a [String]) -> impl Iterator<Item = &'a String> {
    of.iter().filter(|feature| !from.contains(feature))
}

fn feature_changes(was: &Properties, now: &Properties) -> Vec<String> {
    let (Some(was), Some(now)) = (&was.features, &now.features) else { return Vec::new() };
    let off = missing(was, now).map(|feature| format!("{feature} off"));
    let on = missing(now, was).map(|feature| format!("{feature} on"));
    off.chain(on).collect()
}

fn gso_changes(was: &Properties, now: &Properties) -> Vec<String> {
    let limits = |of: &Properties| {
        let LinkState { gso_max_size, gso_ipv4_max_size, gso_max_segs, .. } = of.link;
        [("gso_max_size", gso_max_size), ("gso_ipv4_max_size", gso_ipv4_max_size), ("gso_max_segs", gso_max_segs)]
    };
    let pairs = limits(was).into_iter().zip(limits(now)).filter(|(was, now)| was != now);
    pairs.map(|((limit, was), (_, now))| format!("{limit} was {was} and is {now}")).collect()
}

/// Changes of a foreign netdev that stays in use, as text.
pub fn changes(settings: &Settings, was: &Properties, now: &Properties) -> Vec<String> {
    let mut changes = Vec::new();
    if settings.is_foreign() && was.link.mac != now.link.mac {
        changes.push(format!("the MAC address of {} was {} and is {}", settings.at(), was.link.mac, now.link.mac));
    }
    if matches!(settings, Settings::Packet(_)) {
        let of_offloads = [feature_changes(was, now), gso_changes(was, now)].concat();
        if !of_offloads.is_empty() {
            changes.push(format!("offloads of {} have changed; following: {}", settings.at(), of_offloads.join(", ")));
        }
    }
    changes
}

/// Differences between netdev and port, as text with a remedy. `of_uplink`: the port is an uplink, whose tap may be a port of
/// a bridge, which leads elsewhere.
pub fn warnings(settings: &Settings, of_uplink: bool, now: &Properties) -> Vec<String> {
    let (location, name) = (settings.at(), &now.name);
    let mut warnings = Vec::new();
    if let Settings::Tap(tap) = settings {
        if *name != tap.name {
            warnings.push(format!(
                "{location} has name {name}, port has {}; the next start would create another tap; rename it there with `ip link set \
                 dev {name} name {}`",
                tap.name, tap.name
            ));
        }
        if now.link.mac != tap.mac {
            warnings.push(format!(
                "{location} has MAC address {}, port has {}; port security drops frames from other addresses; set it there with `ip link set \
                 dev {name} address {}`",
                now.link.mac, tap.mac, tap.mac
            ));
        }
        if now.link.mtu != u32::from(tap.mtu) {
            warnings.push(format!(
                "{location} has MTU {}, port has {}; set it there with `ip link set dev {name} mtu {}`",
                now.link.mtu, tap.mtu, tap.mtu
            ));
        }
    }
    let effect = match settings {
        Settings::Tap(_) if of_uplink => None,
        Settings::Tap(_) => Some("it is a port of its master as well"),
        Settings::Packet(_) => Some("its master forwards each frame as well"),
        Settings::Xdp(_) => Some("frames that its master sends by it bypass the switch"),
    };
    if let Some((master, effect)) = now.master.as_ref().zip(effect) {
        warnings.push(format!(
            "{location} has master {master}, port has none; {effect}; remove it there with `ip link set dev {name} nomaster`"
        ));
    }
    if let Settings::Packet(_) = settings {
        let oversize = oversize_packets(&now.link, name, now.peer.as_ref());
        warnings.extend(oversize.into_iter().map(|said| format!("{location}: {said}")));
    }
    warnings.extend(shared_with(&now.stack, name).map(|said| format!("{location}: {said}")));
    warnings.extend(tunnel_warnings(settings, now));
    warnings
}

/// Warnings about VXLAN netdevs that frames of the port pass.
pub fn tunnel_warnings(settings: &Settings, now: &Properties) -> impl Iterator<Item = String> {
    now.tunnels.iter().filter_map(|tunnel| tunnel.warning(&settings.at(), settings.mtu().into()))
}

/// Warnings that a netdev may deliver GSO packets which exceed a receive buffer: built by its GRO, or sent by the other end
/// of a veth.
pub(super) fn oversize_packets(link: &LinkState, name: &str, peer: Option<&Peer>) -> Vec<String> {
    let limits = [("gro_max_size", link.gro_max_size), ("gro_ipv4_max_size", link.gro_ipv4_max_size)];
    let own = oversize(limits).map(|(found, remedy)| {
        format!(
            "it has {found}, and the switch drops GSO packets longer than 64 KiB that GRO builds (rx_missed); \
             `ip link set dev {name} {remedy}` there prevents them"
        )
    });
    let other = peer.and_then(|peer| {
        let limits = [("gso_max_size", peer.gso_max_size), ("gso_ipv4_max_size", peer.gso_ipv4_max_size)];
        let (found, remedy) = oversize(limits)?;
        Some(format!(
            "its peer {} has {found}, and the switch drops GSO packets longer than 64 KiB that the peer sends (rx_missed); \
             `ip link set dev {} {remedy}` in the peer's namespace prevents them",
            peer.name, peer.name
        ))
    });
    own.into_iter().chain(other).collect()
}

/// Those limits of GSO packets that exceed a receive buffer, and the arguments of `ip link set` that lower them.
fn oversize(limits: [(&str, u32); 2]) -> Option<(String, String)> {
    let (found, remedy): (Vec<_>, Vec<_>) = (limits.iter().filter(|&&(_, size)| size > MAX_GSO_SIZE))
        .map(|(limit, size)| (format!("{limit} {size}"), format!("{limit} {MAX_GSO_SIZE}")))
        .unzip();
    (!found.is_empty()).then(|| (found.join(", "), remedy.join(" ")))
}

/// Warning about a netdev of kind `packet` whose frames the namespace's network stack receives as well.
pub(super) fn shared_with(stack: &HostStack, name: &str) -> Option<String> {
    (!stack.is_silent()).then(|| {
        let mut settings = Vec::new();
        settings.extend((!stack.answers.is_empty()).then(|| format!("net.ipv4.conf.{name}.arp_ignore=8")));
        settings.extend(stack.forwards.then(|| format!("net.ipv4.conf.{name}.forwarding=0")));
        settings.extend(stack.ipv6.then(|| format!("net.ipv6.conf.{name}.disable_ipv6=1")));
        format!(
            "the host's network stack receives each frame as well: it {stack}; keep frames from it with isolate = true for the \
             device, or there with `sysctl -w {}`",
            settings.join(" ")
        )
    })
}

/// Warning about a device that has refused frames, if VLAN tags may be the reason: a packet socket counts them towards
/// the MTU, except one of 802.1Q.
pub fn refusals(settings: &Settings, now: &Properties) -> Option<String> {
    let Settings::Packet(packet) = settings else { return None };
    let needed = packet::mtu_for_two_tags(packet.mtu.into(), packet::OuterTag::Any);
    let own_tunnel = now.tunnels.iter().find(|tunnel| tunnel.is(&now.name));
    if own_tunnel.is_some() && now.link.mtu < packet.mtu.into() {
        // Frames without tags are refused already: the warning about its MTU says what helps.
        return None;
    }
    (now.link.mtu < needed).then(|| {
        let remedy = own_tunnel.map_or_else(
            || format!("set it with `ip link set dev {} mtu {needed}`", now.name),
            |tunnel| tunnel.remedy_for_tags(needed),
        );
        format!(
            "{} has refused frames (device_refused): with its MTU of {}, full-size frames pass with one tag of 802.1Q, but not with \
             two, or with one of 802.1ad; {remedy}",
            settings.at(),
            now.link.mtu,
        )
    })
}

/// Whether changes of a port's netdev are reverted: the switch created it, in the host's namespace, where no one else
/// configures it.
pub fn is_restored(settings: &Settings, made: bool) -> bool {
    made && matches!(settings, Settings::Tap(tap) if tap.netns == Netns::Host)
}

/// What [`restore`] would change, as text.
pub fn pending_restore(settings: &Settings, now: &Properties) -> Vec<String> {
    let Settings::Tap(tap) = settings else { return Vec::new() };
    let mut off = Vec::new();
    if now.link.mac != tap.mac {
        off.push(format!("MAC address {}, port has {}", now.link.mac, tap.mac));
    }
    if now.link.mtu != u32::from(tap.mtu) {
        off.push(format!("MTU {}, port has {}", now.link.mtu, tap.mtu));
    }
    if !now.link.up {
        off.push("link state down, port has up".to_owned());
    }
    off
}

/// Restores MAC address, MTU and link state of a netdev that the switch created, by interface index. May block.
pub fn restore(settings: &Settings, index: u32) -> Result<(), OpenError> {
    match settings {
        Settings::Tap(tap) => tap::restore(tap, index),
        // The switch does not own the netdev.
        Settings::Xdp(_) | Settings::Packet(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::xdp;
    use crate::wire::Mac;

    fn mac(n: u64) -> Mac {
        Mac::from_bits(0x0200_0000_0000 + n)
    }

    fn tap(netns: Netns) -> Settings {
        Settings::Tap(tap::Settings {
            name: "tap1".into(),
            netns,
            queues: 1,
            offloads: true,
            persist: true,
            mac: mac(1),
            mtu: 1500,
            owner: "p".into(),
        })
    }

    fn packet() -> Settings {
        Settings::Packet(packet::Settings {
            name: "eth1".into(),
            netns: Netns::Host,
            offloads: true,
            isolate: false,
            mtu: 1500,
            owner: "p".into(),
        })
    }

    fn xdp() -> Settings {
        Settings::Xdp(xdp::Settings {
            name: "eth1".into(),
            netns: Netns::Host,
            queues: None,
            mode: xdp::Mode::Auto,
            replace_xdp_program: false,
            vlan_demux: false,
            mtu: 1500,
            fill: 64,
            owner: "p".into(),
        })
    }

    fn features(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(|name| (*name).into()).collect())
    }

    fn of(settings: &Settings) -> Properties {
        let link = LinkState { index: 7, up: true, carrier: true, mtu: 1500, mac: mac(1), ..LinkState::default() };
        Properties { name: settings.name().into(), link, ..Properties::default() }
    }

    #[test]
    fn each_changed_property_of_a_tap_is_named_with_values_and_remedy() {
        let tap = tap(Netns::Named("blue".into()));
        let right = of(&tap);
        assert_eq!(warnings(&tap, false, &right), [""; 0]);
        let said = |change: fn(&mut Properties), iovecs: &[&str]| {
            let mut now = right.clone();
            change(&mut now);
            let [warning] = &warnings(&tap, false, &now)[..] else { panic!("{:?}", warnings(&tap, false, &now)) };
            assert!(iovecs.iter().all(|piece| warning.contains(piece)), "{warning}");
        };
        let address = "has MAC address 02:00:00:00:00:63, port has 02:00:00:00:00:01";
        said(|now| now.link.mac = mac(99), &["tap1 in namespace blue", address, "address 02:00:00:00:00:01`"]);
        said(|now| now.link.mtu = 900, &["has MTU 900, port has 1500", "ip link set dev tap1 mtu 1500"]);
        said(|now| now.name = "b0".into(), &["has name b0, port has tap1", "ip link set dev b0 name tap1"]);
        said(|now| now.master = Some("br0".into()), &["has master br0, port has none", "nomaster"]);
        let on_bridge = Properties { master: Some("br0".into()), ..right.clone() };
        assert_eq!(warnings(&tap, true, &on_bridge), [""; 0], "an uplink may lead to a bridge");
    }

    #[test]
    fn too_small_an_mtu_for_tags_is_reported_for_packet_sockets() {
        let mut now = of(&packet());
        assert!(refusals(&packet(), &now).unwrap().contains("mtu 1508`"));
        now.link.mtu = 1508;
        assert_eq!(refusals(&packet(), &now), None);
        assert_eq!(refusals(&xdp(), &of(&xdp())), None);
    }

    #[test]
    fn each_gro_limit_beyond_64_kib_is_named_with_its_value_and_the_remedy() {
        let mut now = of(&packet());
        (now.link.gro_max_size, now.link.gro_ipv4_max_size) = (65_536, 65_536);
        assert_eq!(warnings(&packet(), false, &now), [""; 0]);
        for (size, ipv4_size, found, remedy) in [
            (185_000, 65_536, "gro_max_size 185000", "gro_max_size 65536"),
            (65_536, 65_537, "gro_ipv4_max_size 65537", "gro_ipv4_max_size 65536"),
            (
                185_000,
                185_000,
                "gro_max_size 185000, gro_ipv4_max_size 185000",
                "gro_max_size 65536 gro_ipv4_max_size 65536",
            ),
        ] {
            (now.link.gro_max_size, now.link.gro_ipv4_max_size) = (size, ipv4_size);
            let [warning] = &warnings(&packet(), false, &now)[..] else {
                panic!("{:?}", warnings(&packet(), false, &now))
            };
            let has = |piece: &str| assert!(warning.contains(piece), "{warning}");
            has(&format!("eth1 in the host's namespace: it has {found},"));
            has(&format!("`ip link set dev eth1 {remedy}`"));
            assert_eq!(warnings(&xdp(), false, &Properties { name: "eth1".into(), ..now.clone() }), [""; 0]);
        }
    }

    #[test]
    fn only_taps_of_the_switch_in_the_host_namespace_are_corrected() {
        assert!(is_restored(&tap(Netns::Host), true));
        for (settings, made) in [(tap(Netns::Host), false), (tap(Netns::Named("blue".into())), true), (packet(), true)]
        {
            assert!(!is_restored(&settings, made), "{settings:?}");
        }
        let mut now = of(&tap(Netns::Host));
        assert_eq!(pending_restore(&tap(Netns::Host), &now), [""; 0]);
        (now.link.mac, now.link.mtu, now.link.up) = (mac(9), 900, false);
        assert_eq!(pending_restore(&tap(Netns::Host), &now).len(), 3);
    }

    #[test]
    fn a_foreign_device_is_reopened_only_if_necessary() {
        for settings in [packet(), xdp()] {
            let up = Properties { queues: Some(1), features: features(&["a", "b"]), ..of(&settings) };
            let why = |change: fn(&mut Properties)| {
                let mut now = up.clone();
                change(&mut now);
                outdated(&settings, Some(&up), Some(&now))
            };
            assert_eq!(why(|_| ()), None);
            assert_eq!(why(|now| now.link.carrier = false), None, "the netdev may reappear at any time");
            assert_eq!(why(|now| now.link.mac = mac(9)), None);
            assert_eq!(why(|now| (now.queues, now.features) = (None, None)), None, "not known");
            let said = |change: fn(&mut Properties), piece: &str| {
                let why = why(change).unwrap();
                assert!(why.text.contains(piece), "{why:?}");
                assert_eq!(why.kind == OutdatedKind::LinkDown, piece.contains("up"), "{why:?}");
            };
            said(|now| now.link.up = false, "`ip link set dev eth1 up`");
            said(|now| now.link.index = 8, "replaced");
            said(|now| now.link.mtu = 9000, "was 1500 and is 9000");
            said(|now| now.queues = Some(4), "had 1 receive queues and has 4");
            let is_packet = matches!(settings, Settings::Packet(_));
            assert_eq!(
                why(|now| now.features = features(&["a", "b", "c"])).is_none(),
                is_packet,
                "xdp would lose tags then"
            );
            assert_eq!(why(|now| now.features = features(&["a"])), None);
            assert_eq!(why(|now| now.link.gso_max_size = 9000), None, "such changes are followed");
            let mut now = Properties { features: features(&["b", "c"]), ..up.clone() };
            now.link.gso_max_size = 9000;
            let said = changes(&settings, &up, &now).concat();
            let iovecs = ["a off, c on", "gso_max_size was 0 and is 9000"];
            assert!(iovecs.iter().all(|piece| said.contains(piece) == is_packet), "{said}");
            // What cannot be read has not changed, and what it was stays known.
            let unread = Properties { queues: None, features: None, ..up.clone() };
            assert_eq!(changes(&settings, &up, &unread), [""; 0]);
            assert_eq!(unread.clone().or_known(&up), up);
            assert_eq!(now.clone().or_known(&up), now);
            assert_eq!(when_opened(&settings, Some(up.clone()), Some(unread)).unwrap().or_known(&up), up);
            assert_eq!(outdated(&settings, Some(&up), None).unwrap().kind, OutdatedKind::Gone);
            assert_eq!(outdated(&settings, None, Some(&up)), None, "no earlier value is known");
        }
        assert_eq!(outdated(&tap(Netns::Host), None, None), None, "a tap of the switch is not reopened");
    }
}
