//! Control plane of a full host: the switch as a process, with many taps in the bench's namespaces, and its state on a
//! disk. Run as root on an idle machine.
//!
//! ```text
//! cargo bench --bench control -- [--ports 1000] [--networks 100] [--rounds 3] [--cycles 20] [--clients 32]
//!     [--each 10] [--short] [--figures]
//! ```
//!
//! Each round begins and ends with an empty switch. Measures at the client: the command `apply` from start to end, an
//! API request from connect to the end of the response, a start until READY. `--clients` change single ports at once,
//! each its own, `--each` times. Prints the median over all rounds, with minimum, 99th percentile and maximum;
//! `--figures`: for `scripts/bench`. `--short` leaves restarts out. Removes everything afterwards, also after a failure.
//! The state is in `$TMPDIR`; in memory its figures mean nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

use std::fmt::Write;
use std::time::{Duration, Instant};

use hyper::Method;
use rustix::process::Signal;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use vifswitch::control::api::client::Client;
use vifswitch::control::api::responses::Status;

use support::host::daemon::Daemon;
use support::host::{Namespace, await_that};

/// Ports per VM; each VM has a namespace.
const SIBLINGS: usize = 10;

/// Requests that read one port, per round.
const READS: usize = 200;

/// Measured values, in order of output.
#[derive(Default)]
struct Figures(Vec<(Figure, Vec<f64>)>);

/// What is measured: its name for scripts, its description and its unit.
type Figure = (&'static str, &'static str, &'static str);

impl Figures {
    fn note(&mut self, figure: Figure, value: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == figure) {
            Some((_, values)) => values.push(value),
            None => self.0.push((figure, vec![value])),
        }
    }

    fn millis(&mut self, name: &'static str, what: &'static str, spent: Duration) {
        self.note((name, what, "ms"), spent.as_secs_f64() * 1e3);
    }

    /// Prints the medians.
    fn print(&mut self, for_scripts: bool) {
        for ((name, what, unit), values) in &mut self.0 {
            values.sort_unstable_by(f64::total_cmp);
            let part = |percent: usize| values[(values.len() * percent / 100).min(values.len() - 1)];
            let (least, median, late, most) = (part(0), part(50), part(99), part(100));
            if for_scripts {
                println!("{name} {median:.3}\n{name}-p99 {late:.3}");
            } else {
                let count = values.len();
                println!("{what:<52} {median:>9.2} {unit:<4} ({least:.2} to {most:.2}, p99 {late:.2}, {count} times)");
            }
        }
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

/// A request: method, path and body.
type Ask = (Method, String, Option<serde_json::Value>);

/// Dimensions of the configuration.
struct Size {
    ports: usize,
    networks: usize,
    /// Concurrent clients, and how often each changes its port.
    clients: usize,
    each: usize,
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
        // More, for the ports that come and go.
        let spaces = (0..(size.ports + 1 + size.clients).div_ceil(SIBLINGS)).map(|_| Namespace::new());
        let spaces = spaces.collect::<Option<_>>()?;
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

    /// Path and body of a request that puts a port.
    fn put(&self, port: usize, mac_limit: usize) -> (String, serde_json::Value) {
        let mut body = self.port(port);
        let path = format!("/v1/ports/{}", body["port_id"].as_str().unwrap());
        body["device_id"] = json!(format!("vm{}", port / SIBLINGS));
        body["mac_limit"] = json!(mac_limit);
        (path, body)
    }

    /// All clients make their requests at once, each one after the other. Returns how long each took, and all.
    fn at_once(&self, requests: impl Fn(usize) -> Vec<Ask>) -> (Vec<Duration>, Duration) {
        let clients: Vec<_> = (0..self.size.clients).map(&requests).collect();
        let socket = self.daemon.socket();
        self.runtime.block_on(async {
            let begin = Instant::now();
            let mut running = JoinSet::new();
            for requests in clients {
                let client = Client::new(&socket);
                running.spawn(async move {
                    let mut each = Vec::new();
                    for (method, path, body) in requests {
                        let begin = Instant::now();
                        client.request(method, &path, body.as_ref()).await.unwrap_or_else(|e| panic!("{path}: {e}"));
                        each.push(begin.elapsed());
                    }
                    each
                });
            }
            (running.join_all().await.concat(), begin.elapsed())
        })
    }

    /// Concurrent clients: each puts a port and deletes it, and changes a key of one that exists.
    fn crowd(&self, figures: &mut Figures) {
        let Size { ports, each, .. } = self.size;
        let come_and_go = |client: usize| {
            let (path, body) = self.put(ports + 1 + client, 9);
            let pair = [(Method::PUT, path.clone(), Some(body)), (Method::DELETE, path, None)];
            (0..each).flat_map(|_| pair.clone()).collect()
        };
        let change = |client: usize| {
            let ask = |turn: usize| {
                let (path, body) = self.put(client * ports / self.size.clients, 9 + turn % 2);
                (Method::PUT, path, Some(body))
            };
            (0..2 * each).map(ask).collect()
        };
        let kinds: [(_, _, _, _, &dyn Fn(usize) -> Vec<Ask>); 2] = [
            ("crowd", "concurrent clients: ports put and deleted, changes", "crowd-each", "each of them", &come_and_go),
            ("keys", "concurrent clients: keys changed, changes", "keys-each", "each of them ", &change),
        ];
        for (name, what, name_of_each, what_of_each, requests) in kinds {
            let (all, spent) = self.at_once(requests);
            figures.note((name, what, "/s"), all.len() as f64 / spent.as_secs_f64());
            all.into_iter().for_each(|spent| figures.millis(name_of_each, what_of_each, spent));
        }
    }

    fn request(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> serde_json::Value {
        let client = Client::new(self.daemon.socket());
        let answer = self.runtime.block_on(client.request(method, path, body));
        let answer = answer.unwrap_or_else(|e| panic!("{path}: {e}\n{}", self.daemon.log()));
        serde_json::from_str(&answer).unwrap()
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
        let netdevs = || self.spaces.iter().map(|namespace| namespace.links().len() - 1).sum::<usize>();
        // Closing that takes longer than 3 seconds continues behind the answer.
        await_that("as many netdevs besides the loopback", || (netdevs() == ports).then_some(()));
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

    fn round(&mut self, cycles: usize, is_short: bool, figures: &mut Figures) {
        let all = self.size.ports;
        self.daemon.configure(&self.text(0));
        self.daemon.start();
        figures.note(("empty", "memory of an empty switch (VmRSS)", "MiB"), self.memory("VmRSS"));
        figures.millis("apply", "apply all, from empty", self.apply(all));
        for cycle in 0..cycles {
            let (path, body) = self.put(all, 9);
            figures.millis("put", "put one more port", timed(|| self.request(Method::PUT, &path, Some(&body))).1);
            let (_, changed) = self.put(all, 10 + cycle);
            figures.millis("key", "change a key of it", timed(|| self.request(Method::PUT, &path, Some(&changed))).1);
            figures.millis("delete", "delete it", timed(|| self.request(Method::DELETE, &path, None)).1);
        }
        for number in 0..READS {
            let (path, _) = self.put(number * all / READS, 9);
            figures.millis("get", "get one port", timed(|| self.request(Method::GET, &path, None)).1);
        }
        figures.millis("show", "show all ports", timed(|| self.daemon.ports()).1);
        self.crowd(figures);
        figures.note(("full", "memory with all (VmRSS)", "MiB"), self.memory("VmRSS"));
        if !is_short {
            assert!(self.daemon.stop(Signal::TERM).success());
            figures.millis("restart", "restart with all taps", self.start());
            self.check(all);
            self.daemon.stop(Signal::KILL);
            figures.millis("killed", "restart after kill -9", self.start());
            self.check(all);
        }
        figures.millis("none", "apply none: remove all", self.apply(0));
        let most = self.memory("VmHWM");
        figures.note(("most", "maximum memory until all are removed (VmHWM)", "MiB"), most);
        let (ended, spent) = timed(|| self.daemon.stop(Signal::TERM));
        assert!(ended.success());
        figures.millis("stop", "stop, empty", spent);
        std::fs::remove_file(self.state()).unwrap();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |key: &str| arguments.iter().position(|argument| argument == key);
    let number = |key: &str, default: usize| given(key).map_or(default, |at| arguments[at + 1].parse().unwrap());
    let (ports, networks) = (number("--ports", 1000), number("--networks", 100));
    let size = Size { ports, networks, clients: number("--clients", 32), each: number("--each", 10) };
    let for_scripts = given("--figures").is_some();
    if !for_scripts {
        println!("{ports} ports on {networks} networks, {SIBLINGS} per VM; {} concurrent clients", size.clients);
    }
    let Some(mut bench) = Bench::new(size) else { return };
    let mut figures = Figures::default();
    for _ in 0..number("--rounds", 3) {
        bench.round(number("--cycles", 20), given("--short").is_some(), &mut figures);
    }
    figures.print(for_scripts);
}
