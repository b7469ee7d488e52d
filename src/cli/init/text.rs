//! Text of the configuration that `vifswitch init` writes. Comments begin with `# `; settings that are not in force begin
//! with `#` alone, so that removing it from any of them, or from all, gives a valid file.

use std::fmt::Write;

use super::{Host, Namespace, Netdev, comment};
use crate::control::config::{SwitchSettings, parse_toml};
use crate::device::doctor::Report;
use crate::frame::SLOT;

/// Least number of frames that a configuration may have.
const FEWEST_FRAMES: u32 = 1024;

/// The network of all suggestions.
const NETWORK: &str = "[[networks]]\nid = \"net1\"\n";

/// The text for this host.
pub(super) fn configuration(host: &Host) -> String {
    let mut file = Draft::default();
    file.say(&format!("vifswitch on {}, as written by `vifswitch init` {}.", host.name, env!("CARGO_PKG_VERSION")));
    file.say(
        "Lines that begin with \"#\" and a letter or bracket are settings; remove the \"#\" to put them in force.",
    );
    file.say("`vifswitch check FILE` checks this file, `vifswitch doctor` describes netdevs, and all keys are in");
    file.say("docs/configuration.md (as packaged: /usr/share/doc/vifswitch/docs/configuration.md).");
    for omitted in &host.omitted {
        file.say(&format!("Not described here: {omitted}."));
    }
    file.switch(host);
    file.line("");
    file.say("Networks: one broadcast domain each.");
    file.line(NETWORK.trim_end());
    file.suggest("mtu = 1500");
    file.ports(host);
    file.uplinks(host);
    file.text
}

/// The text so far.
#[derive(Default)]
struct Draft {
    text: String,
    /// Number of suggested ports, and VMs.
    ports: u16,
}

impl Draft {
    fn line(&mut self, line: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn say(&mut self, text: &str) {
        self.line(&format!("# {}", comment(text)));
    }

    /// A setting that is not in force.
    fn suggest(&mut self, lines: &str) {
        lines.lines().for_each(|line| self.line(&format!("#{line}")));
    }

    /// Suggests tables, if they would be valid. Netdevs may have names that no configuration takes.
    fn suggest_valid(&mut self, lines: &str) {
        match parse_toml(&format!("{NETWORK}{lines}"), "suggestion") {
            Ok(_) => self.suggest(lines),
            Err(errors) => self.say(&format!("not to be configured: {errors}")),
        }
    }

    fn switch(&mut self, host: &Host) {
        let defaults = SwitchSettings::default();
        self.line("");
        self.line("[switch]");
        self.say("One worker thread per core, pinned to it. Best are cores that nothing else uses.");
        self.say(&format!(
            "Cores of this process: {}; isolated from others: {}.",
            list(&host.cores),
            list(&host.isolated)
        ));
        let isolated: Vec<usize> = host.isolated.iter().copied().filter(|core| host.cores.contains(core)).collect();
        let cores = match (isolated.is_empty(), host.cores.last()) {
            (false, _) => isolated,
            (true, Some(&last)) => vec![last],
            (true, None) => Vec::new(),
        };
        self.line(&format!("cores = [{}]", cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")));
        let frames = frames(host.memory, defaults.frames);
        let mib = |bytes: u64| bytes >> 20;
        let needed = u64::from(frames) * SLOT as u64;
        let (ordinary, huge) = host.memory.unwrap_or_default();
        self.say(&format!(
            "Frame buffers of 4 KiB: {} MiB for {frames}. Available here: {} MiB, and {} MiB of huge pages.",
            mib(needed),
            mib(ordinary),
            mib(huge)
        ));
        if huge < needed {
            let pages = needed.div_ceil(2 << 20);
            self.say(&format!("In huge pages they would take `sysctl vm.nr_hugepages={pages}`."));
        }
        if frames == defaults.frames {
            self.suggest(&format!("frames = {frames}"));
        } else {
            self.line(&format!("frames = {frames}"));
        }
        self.say("`busy` never lets a worker sleep: lower latency, one core each.");
        self.suggest("poll = \"adaptive\"");
        self.say("Socket of the API, and the file that keeps what the API changes; \"\" keeps nothing.");
        self.suggest(&format!("api = {}", quoted(&defaults.api.display().to_string())));
        if let Some(state) = &defaults.state {
            self.suggest(&format!("state = {}", quoted(&state.display().to_string())));
        }
        self.say("TCP listener for Prometheus.");
        self.suggest("metrics = \"127.0.0.1:9477\"");
    }

    fn ports(&mut self, host: &Host) {
        self.line("");
        self.say(
            "VMs and containers with their ports, in the order in which they see them. `mac_address` is the guest's.",
        );
        if host.taps.is_empty() && host.namespaces.is_empty() {
            self.say("This host has no taps and no named namespaces; the switch creates this tap:");
            self.vm("{ kind = \"tap\", name = \"tap-vm-1\" }");
        }
        for Netdev { report, .. } in &host.taps {
            self.line("");
            self.report(report);
            let Some(kind) = report.prefer else { continue };
            self.vm(&format!("{{ kind = {}, name = {} }}", quoted(kind), quoted(&report.device)));
        }
        for namespace in &host.namespaces {
            self.line("");
            self.namespace(namespace);
        }
    }

    fn namespace(&mut self, Namespace { name, netdevs }: &Namespace) {
        match netdevs {
            Ok(netdevs) if netdevs.is_empty() => self.say(&format!("Namespace {name}: no netdevs.")),
            Ok(netdevs) => self.say(&format!("Namespace {name} has {}.", netdevs.join(", "))),
            Err(e) => return self.say(&format!("Namespace {name} cannot be entered: {e}.")),
        }
        let is_free = |device: &String| !netdevs.as_ref().is_ok_and(|netdevs| netdevs.contains(device));
        let Some(device) = (0..=u16::MAX).map(|number| format!("eth{number}")).find(is_free) else { return };
        self.say("The switch creates this netdev there:");
        self.vm(&format!("{{ kind = \"tap\", name = {}, netns = {} }}", quoted(&device), quoted(name)));
    }

    /// Suggests a VM with one port.
    fn vm(&mut self, device: &str) {
        self.ports += 1;
        let number = self.ports;
        let [high, low] = number.to_be_bytes();
        self.suggest_valid(&format!(
            "[[vms]]\nid = \"vm-{number}\"\n[[vms.ports]]\nport_id = \"port-{number}\"\nnetwork_id = \"net1\"\n\
             mac_address = \"02:00:00:00:{high:02x}:{low:02x}\"\ndevice = {device}\n"
        ));
    }

    fn uplinks(&mut self, host: &Host) {
        self.line("");
        self.say(
            "Uplinks: the networks outside. A netdev that the switch uses is not available to this host any more.",
        );
        for (name, reason) in &host.in_use {
            self.say(&format!("{name}: not proposed, because {reason}."));
        }
        if host.candidates.is_empty() {
            self.say("This host has no Ethernet netdev that nothing uses. An uplink looks like this:");
            self.uplink(1, "{ kind = \"packet\", name = \"eth1\" }");
        }
        for (index, Netdev { report, is_physical }) in host.candidates.iter().enumerate() {
            self.line("");
            self.report(report);
            if !is_physical {
                self.say("It is virtual: an uplink only if its other end leads outside.");
            }
            let Some(kind) = report.prefer else { continue };
            self.uplink(index + 1, &format!("{{ kind = {}, name = {} }}", quoted(kind), quoted(&report.device)));
        }
    }

    fn uplink(&mut self, number: usize, device: &str) {
        let networks = "[{ network_id = \"net1\" }] # untagged; with a tag: { network_id = \"net1\", vlan = 120 }";
        self.suggest_valid(&format!(
            "[[uplinks]]\nid = \"uplink-{number}\"\ndevice = {device}\nnetworks = {networks}\n"
        ));
    }

    /// What `doctor` says.
    fn report(&mut self, report: &Report) {
        report.to_string().lines().for_each(|line| self.say(line));
    }
}

/// Frames for this memory: the default, or fewer, which take at most half of what is available.
fn frames(memory: Option<(u64, u64)>, default: u32) -> u32 {
    let Some((ordinary, huge)) = memory else { return default };
    let most = (ordinary / 2).max(huge);
    let fits = |frames: &u32| u64::from(*frames) * SLOT as u64 <= most;
    std::iter::successors(Some(default), |frames| Some(frames / 2).filter(|&half| half >= FEWEST_FRAMES))
        .find(fits)
        .unwrap_or(FEWEST_FRAMES)
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn list(cores: &[usize]) -> String {
    match cores {
        [] => "none".to_owned(),
        cores => cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::control::config::Config;

    /// The file with all settings in force.
    fn enabled(text: &str) -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    }

    fn parsed(text: &str) -> Config {
        parse_toml(text, "init").unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    }

    fn report(device: &str, prefer: Option<&'static str>) -> Report {
        Report {
            device: device.into(),
            netns: None,
            problem: None,
            driver: Some("ice".into()),
            mtu: Some(1500),
            up: true,
            carrier: true,
            kinds: Vec::new(),
            prefer,
            because: prefer.map(|_| "it is free"),
            underlays: Vec::new(),
            warnings: vec!["a warning".into()],
        }
    }

    fn hosts() -> impl Strategy<Value = Host> {
        let name = || prop_oneof![3 => "[a-z][a-z0-9-]{0,14}", 1 => "\\PC{0,20}", 1 => "[\\x00-\\x7f]{0,15}"];
        let prefer = || prop_oneof![Just(None), Just(Some("tap")), Just(Some("xdp")), Just(Some("packet"))];
        let netdevs = move || {
            let netdev = (name(), prefer(), any::<bool>())
                .prop_map(|(name, prefer, is_physical)| Netdev { report: report(&name, prefer), is_physical });
            vec(netdev, 0..4)
        };
        let names = move || vec(name(), 0..3);
        let netdevs_of = move || prop_oneof![names().prop_map(Ok), name().prop_map(Err)];
        let namespaces = vec((name(), netdevs_of()).prop_map(|(name, netdevs)| Namespace { name, netdevs }), 0..4);
        let memory = proptest::option::of((0..1_u64 << 36, 0..1_u64 << 32));
        let cores =
            || vec(0..1024_usize, 0..4).prop_map(|cores| cores.into_iter().collect::<std::collections::BTreeSet<_>>());
        let in_use = vec((name(), name()), 0..3);
        (name(), cores(), cores(), memory, netdevs(), netdevs(), namespaces, in_use, names()).prop_map(
            |(name, cores, isolated, memory, candidates, taps, namespaces, in_use, omitted)| {
                let (cores, isolated) = (cores.into_iter().collect(), isolated.into_iter().collect());
                Host { name, cores, isolated, memory, candidates, in_use, taps, namespaces, omitted }
            },
        )
    }

    /// Fewer than 1 << `bits` bytes, of all orders of magnitude.
    fn bytes(bits: u32) -> impl Strategy<Value = u64> {
        (0..=bits, any::<u64>()).prop_map(|(bits, any)| any & ((1 << bits) - 1))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn the_file_is_valid_for_any_host_as_it_is_and_with_all_settings(host in hosts()) {
            let text = configuration(&host);
            let written = parsed(&text);
            prop_assert!(written.vms.is_empty() && written.uplinks.is_empty(), "nothing is taken over: {text}");
            prop_assert!(written.switch.cores.iter().all(|core| host.cores.contains(core)), "{text}");
            // names may be used twice by two of these random hosts' netdevs
            let all = enabled(&text);
            if let Err(errors) = parse_toml(&all, "init") {
                prop_assert!(errors.errors().iter().all(|error| error.kind.contains("duplicate")), "{errors}\n{all}");
            }
        }

        #[test]
        fn frames_fit_the_memory(ordinary in bytes(34), huge in bytes(30)) {
            let frames = frames(Some((ordinary, huge)), 65536);
            let bytes = u64::from(frames) * SLOT as u64;
            prop_assert!((FEWEST_FRAMES..=65536).contains(&frames));
            prop_assert!(frames == FEWEST_FRAMES || bytes <= (ordinary / 2).max(huge));
            let would_fit = bytes * 2 <= (ordinary / 2).max(huge);
            prop_assert!(frames == 65536 || !would_fit, "{frames} could be more");
        }
    }

    #[test]
    fn what_the_host_has_is_suggested() {
        let host = Host {
            name: "compute-1".into(),
            cores: vec![0, 1, 2],
            isolated: vec![2, 9],
            memory: Some((8 << 30, 0)),
            candidates: vec![Netdev { report: report("eth1", Some("xdp")), is_physical: true }],
            in_use: vec![("eth0".into(), "it has addresses of this host".into())],
            taps: vec![Netdev { report: report("tap0", Some("packet")), is_physical: false }],
            namespaces: vec![Namespace { name: "blue".into(), netdevs: Ok(vec!["eth0".into()]) }],
            omitted: Vec::new(),
        };
        let text = configuration(&host);
        assert_eq!(parsed(&text).switch.cores, [2], "an isolated core that the process may use");
        let all = parsed(&enabled(&text));
        let devices: Vec<(&str, &str, Option<&str>)> =
            all.devices().map(|device| (device.kind(), device.name(), device.netns())).collect();
        let expected = [("packet", "tap0", None), ("tap", "eth1", Some("blue")), ("xdp", "eth1", None)];
        assert_eq!(devices, expected, "{text}");
        assert_eq!(all.switch.frames, 65536);
        for part in ["compute-1", "eth0: not proposed, because it has addresses", "nr_hugepages=128", "driver ice"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_host_with_nothing_gets_examples() {
        let text = configuration(&Host::default());
        assert!(parsed(&text).switch.cores.is_empty());
        let all = parsed(&enabled(&text));
        assert_eq!((all.vms.len(), all.uplinks.len()), (1, 1), "{text}");
    }
}
