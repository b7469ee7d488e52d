//! Control plane of a full host: the switch as a process, with many taps in the bench's namespaces. Run as root on an
//! idle machine.
//!
//! ```text
//! cargo bench --bench control -- [--ports 1000] [--networks 100] [--rounds 3] [--cycles 20]
//! ```
//!
//! Each round begins and ends with an empty switch. Measures at the client: the command `apply` from start to end, an
//! API request from connect to the end of the response, a start until READY. Prints the median over all rounds, with
//! minimum and maximum. Removes everything afterwards, also after a failure.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

use std::fmt::Write;
use std::time::{Duration, Instant};

use hyper::Method;
use rustix::process::Signal;
use serde_json::json;
use tokio::runtime::Runtime;
use vifswitch::control::api::client::Client;
use vifswitch::control::api::responses::Status;

use support::host::Namespace;
use support::host::daemon::Daemon;

/// Ports per VM; each VM has a namespace.
const SIBLINGS: usize = 10;

/// Measured values, in order of output.
#[derive(Default)]
struct Figures(Vec<(&'static str, &'static str, Vec<f64>)>);

impl Figures {
    fn note(&mut self, what: &'static str, unit: &'static str, value: f64) {
        match self.0.iter_mut().find(|(known, ..)| *known == what) {
            Some((.., values)) => values.push(value),
            None => self.0.push((what, unit, vec![value])),
        }
    }

    fn millis(&mut self, what: &'static str, spent: Duration) {
        self.note(what, "ms", spent.as_secs_f64() * 1e3);
    }

    /// Prints the medians.
    fn print(&mut self) {
        for (what, unit, values) in &mut self.0 {
            values.sort_unstable_by(f64::total_cmp);
            let (least, median, most) = (values[0], values[values.len() / 2], values[values.len() - 1]);
            println!("{what:<52} {median:>9.1} {unit:<4} ({least:.1} to {most:.1}, {} times)", values.len());
        }
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

/// Dimensions of the configuration.
struct Size {
    ports: usize,
    networks: usize,
}

/// The switch on a host with namespaces for the VMs.
struct Bench {
    size: Size,
    daemon: Daemon,
    spaces: Vec<Namespace>,
    runtime: Runtime,
}

impl Bench {
    /// `None` without the rights to create namespaces.
    fn new(size: Size) -> Option<Bench> {
        // One more, for the port that comes and goes.
        let spaces = (0..size.ports.div_ceil(SIBLINGS) + 1).map(|_| Namespace::new()).collect::<Option<_>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Some(Bench { size, daemon: Daemon::new(), spaces, runtime })
    }

    fn state(&self) -> std::path::PathBuf {
        self.daemon.socket().with_file_name("state.db")
    }

    /// A configuration with all networks and `ports` ports.
    fn text(&self, ports: usize) -> String {
        let mut text = format!("[switch]\napi = {:?}\nstate = {:?}\n", self.daemon.socket(), self.state());
        for network in 0..self.size.networks {
            writeln!(text, "[[networks]]\nid = \"net{network}\"").unwrap();
        }
        for port in 0..ports {
            if port % SIBLINGS == 0 {
                writeln!(text, "[[vms]]\nid = \"vm{}\"", port / SIBLINGS).unwrap();
            }
            writeln!(text, "[[vms.ports]]").unwrap();
            for (key, value) in self.port(port).as_object().unwrap() {
                match value.as_object() {
                    None => writeln!(text, "{key} = {value}").unwrap(),
                    Some(table) => {
                        let keys: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {value}")).collect();
                        writeln!(text, "{key} = {{ {} }}", keys.join(", ")).unwrap();
                    }
                }
            }
        }
        text
    }

    fn port(&self, port: usize) -> serde_json::Value {
        let [high, low] = (port as u16).to_be_bytes();
        json!({
            "port_id": format!("0c11a9e4-6f1b-4b0e-9a51-7f5f9c1f{port:04x}"),
            "network_id": format!("net{}", port / SIBLINGS % self.size.networks),
            "mac_address": format!("02:00:00:00:{high:02x}:{low:02x}"),
            "device": {"kind": "tap", "name": format!("tap{port}"), "netns": self.spaces[port / SIBLINGS].0},
        })
    }

    fn request(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> serde_json::Value {
        let client = Client::new(self.daemon.socket());
        let answer = self.runtime.block_on(client.request(method, path, body));
        serde_json::from_str(&answer.unwrap_or_else(|e| panic!("{path}: {e}\n{}", self.daemon.log()))).unwrap()
    }

    /// Applies a configuration with `ports` ports by the command `vifswitch apply`.
    fn apply(&self, ports: usize) -> Duration {
        self.daemon.configure(&self.text(ports));
        let socket = self.daemon.socket();
        let arguments = ["apply", "--socket", socket.to_str().unwrap(), "FILE"];
        let (done, spent) = timed(|| self.daemon.try_command(&arguments));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self.check(ports);
        spent
    }

    /// Checks that exactly these ports exist and are active.
    fn check(&self, ports: usize) {
        let there = self.daemon.ports();
        assert_eq!(there.len(), ports);
        if let Some(down) = there.iter().find(|port| port.status != Status::Active) {
            panic!("{down:?}");
        }
        let netdevs: usize = self.spaces.iter().map(|namespace| namespace.links().len() - 1).sum();
        assert_eq!(netdevs, ports, "besides the loopback");
    }

    /// A value of /proc/PID/status of the switch, in MiB.
    fn memory(&self, key: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<f64>().unwrap() / 1024.0
    }

    fn start(&mut self) -> Duration {
        let state = self.state();
        timed(|| self.daemon.start_over("--state", &state)).1
    }

    fn round(&mut self, cycles: usize, figures: &mut Figures) {
        let all = self.size.ports;
        self.daemon.configure(&self.text(0));
        self.daemon.start();
        figures.note("memory of an empty switch (VmRSS)", "MiB", self.memory("VmRSS"));
        figures.millis("apply all, from empty", self.apply(all));
        for _ in 0..cycles {
            let (port, vm) = (self.port(all), format!("/v1/vms/vm{}/ports", all / SIBLINGS));
            figures.millis("attach one", timed(|| self.request(Method::POST, &vm, Some(&port))).1);
            let path = format!("/v1/ports/{}", port["port_id"].as_str().unwrap());
            figures.millis("detach one", timed(|| self.request(Method::DELETE, &path, None)).1);
        }
        figures.millis("show all ports", timed(|| self.daemon.ports()).1);
        figures.note("memory with all (VmRSS)", "MiB", self.memory("VmRSS"));
        assert!(self.daemon.stop(Signal::TERM).success());
        figures.millis("restart with all taps", self.start());
        self.check(all);
        self.daemon.stop(Signal::KILL);
        figures.millis("restart after kill -9", self.start());
        self.check(all);
        figures.millis("apply none: remove all", self.apply(0));
        figures.note("maximum memory until all are removed (VmHWM)", "MiB", self.memory("VmHWM"));
        let (ended, spent) = timed(|| self.daemon.stop(Signal::TERM));
        assert!(ended.success());
        figures.millis("stop, empty", spent);
        std::fs::remove_file(self.state()).unwrap();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |key: &str, default: usize| match arguments.iter().position(|argument| argument == key) {
        Some(at) => arguments[at + 1].parse().unwrap(),
        None => default,
    };
    let size = Size { ports: number("--ports", 1000), networks: number("--networks", 100) };
    println!("{} ports on {} networks, {} per VM", size.ports, size.networks, SIBLINGS);
    let Some(mut bench) = Bench::new(size) else { return };
    let mut figures = Figures::default();
    for _ in 0..number("--rounds", 3) {
        bench.round(number("--cycles", 20), &mut figures);
    }
    figures.print();
}
