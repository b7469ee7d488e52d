//! The switch as a process, over a configuration that the test writes.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use vifswitch::control::api::client::Client;
use vifswitch::control::api::responses::{AuditView, BetweenView, CountsView, PortView, Status, WorkerView};
use vifswitch::control::state::events::Event;
use vifswitch::switch::DropReason;
use vifswitch::wire::Mac;

use super::fd_store::FdStore;
use super::{Namespace, TEST_TIMEOUT, await_that};

/// A port of a configuration.
#[derive(Debug, Clone)]
pub struct Vif {
    pub vm: String,
    pub port: String,
    pub network: String,
    pub mac: Mac,
    /// Device kind.
    pub kind: &'static str,
    pub netns: String,
    pub name: String,
    /// More keys of the port, one per line.
    pub more: String,
    /// More keys of its device, each after a comma.
    pub device: String,
    /// Parent and VLAN id, instead of a device, of a subport.
    pub trunk: Option<(String, u16)>,
}

impl Vif {
    /// Port `number` on net1, with its own tap in `namespace`.
    pub fn new(vm: &str, number: u8, namespace: &Namespace) -> Vif {
        Vif {
            vm: vm.into(),
            port: format!("port-{number}"),
            network: "net1".into(),
            mac: Mac::from_bits(0x0200_0000_0100 + u64::from(number)),
            kind: "tap",
            netns: namespace.0.clone(),
            name: format!("tap{number}"),
            more: String::new(),
            device: String::new(),
            trunk: None,
        }
    }

    /// The same, as a subport of another port.
    pub fn subport_of(self, parent: &Vif, vlan: u16) -> Vif {
        Vif { trunk: Some((parent.port.clone(), vlan)), ..self }
    }

    /// Its `device` key, or `parent` and `vlan`.
    pub fn base(&self) -> String {
        let Vif { kind, netns, name, device, .. } = self;
        match &self.trunk {
            Some((parent, vlan)) => format!("parent = \"{parent}\"\nvlan = {vlan}"),
            None => format!("device = {{ kind = \"{kind}\", name = \"{name}\", netns = \"{netns}\"{device} }}"),
        }
    }

    pub fn on(self, network: &str) -> Vif {
        Vif { network: network.into(), ..self }
    }

    pub fn device(self, device: &str) -> Vif {
        Vif { device: device.into(), ..self }
    }
}

/// The text of a configuration; `switch` has more keys of its table.
pub fn config(socket: &Path, switch: &str, networks: &[(&str, u16)], vifs: &[Vif]) -> String {
    // AF_XDP keeps frames in its rings.
    let frames = if vifs.iter().any(|vif| vif.kind == "xdp") { 16384 } else { 2048 };
    let mut text = format!("[switch]\napi = {socket:?}\nstate = \"\"\nframes = {frames}\nstations = 4096\n{switch}\n");
    for (id, mtu) in networks {
        write!(text, "[[networks]]\nid = \"{id}\"\nmtu = {mtu}\n").unwrap();
    }
    let mut vms: Vec<&str> = Vec::new();
    for vif in vifs {
        if !vms.contains(&vif.vm.as_str()) {
            vms.push(&vif.vm);
        }
    }
    for vm in vms {
        write!(text, "[[vms]]\nid = \"{vm}\"\n").unwrap();
        for vif in vifs.iter().filter(|vif| vif.vm == vm) {
            let Vif { port, network, mac, more, .. } = vif;
            write!(text, "[[vms.ports]]\nport_id = \"{port}\"\nnetwork_id = \"{network}\"\n").unwrap();
            write!(text, "mac_address = \"{mac}\"\n{more}\n").unwrap();
            writeln!(text, "{}", vif.base()).unwrap();
        }
    }
    text
}

/// A configuration with its state at `path`.
pub fn keeping(text: &str, path: &Path) -> String {
    assert!(text.contains("state = \"\""), "{text}");
    text.replacen("state = \"\"", &format!("state = {path:?}"), 1)
}

/// A port as `attach` reads it.
pub fn attachment(vif: &Vif) -> String {
    let Vif { vm, port, network, mac, more, .. } = vif;
    format!(
        "device_id = \"{vm}\"\nport_id = \"{port}\"\nnetwork_id = \"{network}\"\nmac_address = \"{mac}\"\n{more}\n\
         {}\n",
        vif.base()
    )
}

/// A directory with configuration and socket, and the switch, if running. Killed when the test ends.
pub struct Daemon {
    child: Option<Child>,
    notified: UnixDatagram,
    fd_store: Mutex<FdStore>,
    /// Sockets that a socket unit passes, with their names.
    pub of_units: Vec<(String, OwnedFd)>,
    dir: TempDir,
}

impl Default for Daemon {
    fn default() -> Daemon {
        Daemon::new()
    }
}

impl Daemon {
    /// A switch that is not running.
    pub fn new() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let notified = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notified.set_nonblocking(true).unwrap();
        Daemon { child: None, notified, fd_store: Mutex::default(), of_units: Vec::new(), dir }
    }

    /// A running switch with these ports on net1.
    pub fn over(vifs: &[Vif]) -> Daemon {
        Daemon::with("", &[("net1", 1500)], vifs)
    }

    pub fn with(switch: &str, networks: &[(&str, u16)], vifs: &[Vif]) -> Daemon {
        let mut daemon = Daemon::new();
        daemon.configure(&config(&daemon.socket(), switch, networks, vifs));
        daemon.start();
        daemon
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("vms.toml")
    }

    /// Path of its state, if configured ([`keeping`]).
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state.db")
    }

    /// Waits until its state has this text. Reads the files and their write-ahead log, as the database must not be opened.
    pub fn await_stored(&self, text: &str) {
        let mut log = self.state().into_os_string();
        log.push("-wal");
        await_that(&format!("{text} in the state"), || {
            let files = [self.state(), log.clone().into()].map(|file| std::fs::read(file).unwrap_or_default());
            files.iter().any(|bytes| bytes.windows(text.len()).any(|at| at == text.as_bytes())).then_some(())
        });
    }

    pub fn configure(&self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
    }

    /// The program in a clean environment: the one under test, or the one that `VIFSWITCH` names, so that the same
    /// test can run against another build.
    pub fn command(&self) -> Command {
        let mut command = Command::new(super::program());
        for variable in [
            "VIFSWITCH",
            "NOTIFY_SOCKET",
            "VIFSWITCH_LOG",
            "VIFSWITCH_LOG_FORMAT",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "FDSTORE",
        ] {
            command.env_remove(variable);
        }
        command
    }

    /// Starts it with its configuration, and waits until it is ready.
    pub fn start(&mut self) {
        let file = self.file();
        self.start_over("--config", &file);
    }

    /// Starts it with a configuration or a state.
    pub fn start_over(&mut self, option: &str, path: &Path) {
        self.start_as(self.command(), option, path);
    }

    /// Starts it by `command`, to which its arguments are appended.
    pub fn start_as(&mut self, command: Command, option: &str, path: &Path) {
        self.spawn_as(command, option, path);
        self.await_note("READY=1");
    }

    /// Starts it with a configuration or a state, without waiting.
    pub fn spawn_over(&mut self, option: &str, path: &Path) {
        self.spawn_as(self.command(), option, path);
    }

    /// Starts it by `command`, to which its arguments are appended, without waiting.
    pub fn spawn_as(&mut self, command: Command, option: &str, path: &Path) {
        let log = File::create(self.dir.path().join("log")).unwrap();
        self.spawn_logging_to(log, command, option, path);
    }

    /// Starts it by `command` with its configuration and this standard error, and waits until it is ready.
    pub fn start_logging_to(&mut self, log: impl Into<Stdio>, command: Command) {
        let file = self.file();
        self.spawn_logging_to(log, command, "--config", &file);
        self.await_note("READY=1");
    }

    fn spawn_logging_to(&mut self, log: impl Into<Stdio>, mut command: Command, option: &str, path: &Path) {
        assert!(self.child.is_none());
        command.arg("run").arg(option).arg(path);
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify"));
        let fd_store = self.fd_store.get_mut().unwrap();
        let mut copies = Vec::new();
        if fd_store.is_open || !self.of_units.is_empty() {
            (command, copies) = fd_store.passing(&command, &self.of_units);
        }
        self.child = Some(command.stderr(log).spawn().unwrap());
        drop(copies);
    }

    /// Waits for this notification to the service manager. The switch must not end before.
    pub fn await_note(&mut self, note: &str) {
        await_that(note, || {
            // In this order: a notification sent before the end still counts.
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            if self.was_told(note) {
                return Some(());
            }
            assert!(ended.is_none(), "{ended:?}:\n{}", self.log());
            None
        });
    }

    /// Next notification to the service manager within the timeout.
    pub fn note_within(&self, timeout: Timespec) -> Option<String> {
        let mut polled = [PollFd::new(&self.notified, PollFlags::IN)];
        if poll(&mut polled, Some(&timeout)).unwrap() == 0 {
            return None;
        }
        self.fd_store.lock().unwrap().receive(&self.notified)
    }

    /// Keeps the descriptors that the switch stores, and passes them at each start.
    pub fn keep_descriptors(&mut self) {
        self.fd_store.get_mut().unwrap().is_open = true;
    }

    /// Reads all notifications, as a service manager does. While a queue of ten is full, the switch holds a socket to send.
    pub fn read_notes(&self) {
        let mut fd_store = self.fd_store.lock().unwrap();
        while fd_store.receive(&self.notified).is_some() {}
    }

    /// Names of the kept descriptors, in order.
    pub fn kept(&self) -> Vec<String> {
        self.read_notes();
        let fd_store = self.fd_store.lock().unwrap();
        let mut names: Vec<String> = fd_store.kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Changes what is kept.
    pub fn edit_kept(&mut self, edit: impl FnOnce(&mut Vec<(String, OwnedFd)>)) {
        self.kept();
        edit(&mut self.fd_store.get_mut().unwrap().kept);
    }

    /// Changes the owner of its directory and its notification socket.
    pub fn give_to(&self, user: u32) {
        for path in [self.dir.path().to_owned(), self.dir.path().join("notify")] {
            std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
        }
    }

    fn was_told(&self, note: &str) -> bool {
        let mut fd_store = self.fd_store.lock().unwrap();
        std::iter::from_fn(|| fd_store.receive(&self.notified)).any(|said| said.lines().any(|line| line == note))
    }

    /// Runs the program to its end; `FILE` stands for the current configuration file.
    pub fn try_command(&self, arguments: &[&str]) -> Output {
        let file = self.file();
        let arguments =
            arguments.iter().map(|&argument| if argument == "FILE" { file.as_path() } else { argument.as_ref() });
        self.command().args(arguments).output().unwrap()
    }

    /// Its standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Whether it is running.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let ended = {
            // On a panic it is still killed.
            let guard = Killed(&mut child);
            await_that("the end of the switch", || guard.0.try_wait().unwrap())
        };
        // Drops notifications of the ended run.
        self.kept();
        self.must_not_have_panicked();
        ended
    }

    fn must_not_have_panicked(&self) {
        let log = self.log();
        assert!(!log.contains("panicked at"), "the switch has panicked:\n{log}");
    }

    /// Ends it by `signal`.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Client::new(self.socket()).get(path)).unwrap_or_else(|e| panic!("{path}: {e}\n{}", self.log()))
    }

    pub fn ports(&self) -> Vec<PortView> {
        self.get("/v1/ports")
    }

    /// Port ids, in order.
    pub fn listed(&self) -> Vec<String> {
        self.ports().into_iter().map(|port| port.port_id).collect()
    }

    /// All events, including those of earlier runs with a state.
    pub fn events(&self) -> Vec<Event> {
        let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        self.page("/v1/events").lines().filter(|line| !line.is_empty()).map(read).collect()
    }

    /// Runs a command of the operator against it, with this standard input.
    pub fn run_command(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command();
        command.args(arguments).arg("--socket").arg(self.socket());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that ends before it has read its input reports why.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// The same; must succeed. Returns its output.
    pub fn done(&self, arguments: &[&str], input: &str) -> String {
        let Output { status, stdout, stderr } = self.run_command(arguments, input);
        assert!(status.success(), "{arguments:?}: {}\n{}", String::from_utf8_lossy(&stderr), self.log());
        String::from_utf8(stdout).unwrap()
    }

    /// Attaches a port after the other ports of its VM.
    pub fn attach(&self, vif: &Vif) -> String {
        self.done(&["attach", "-"], &attachment(vif))
    }

    pub fn detach(&self, vif: &Vif) -> String {
        self.done(&["detach", &vif.port], "")
    }

    pub fn workers(&self) -> Vec<WorkerView> {
        self.get("/v1/workers")
    }

    pub fn port(&self, vif: &Vif) -> PortView {
        self.ports().into_iter().find(|port| port.port_id == vif.port).unwrap()
    }

    /// Frames dropped at a port for a reason.
    pub fn drops(&self, vif: &Vif, reason: &str) -> u64 {
        assert!(DropReason::ALL.iter().any(|known| known.name() == reason), "no drop reason {reason}");
        self.port(vif).counts.drops.get(reason).copied().unwrap_or_default()
    }

    /// Waits until a port is as `wanted`.
    pub fn await_port(&self, what: &str, vif: &Vif, wanted: impl Fn(&PortView) -> bool) -> PortView {
        await_that(what, || Some(self.port(vif)).filter(&wanted))
    }

    pub fn await_active(&self, vif: &Vif) -> PortView {
        self.await_port("ACTIVE", vif, |port| port.status == Status::Active)
    }

    /// Waits until the port is down and it is known why: on a busy machine an opening may take so long that this is what
    /// the port says first.
    pub fn await_down(&self, vif: &Vif) -> PortView {
        let is_known = |port: &PortView| !port.status_reason.is_empty() && port.status_code != "open_overdue";
        self.await_port("DOWN", vif, |port| port.status == Status::Down && is_known(port))
    }

    /// Waits until no frame is in flight and all are counted, and returns the ports. Between two readings each worker
    /// has replied: a worker that is not scheduled changes no counter, and frames that it is about to flood are in no
    /// port's counter yet.
    pub fn await_idle(&self) -> Vec<PortView> {
        let mut before = Vec::new();
        await_that("quiet", || {
            let audit: AuditView = self.get("/v1/audit");
            let between = [audit.frames_between, audit.floods_between];
            let is_still = audit.balanced && audit.idle && between == [BetweenView::default(); 2];
            let now = self.ports();
            let (expected, went) = sums(&now);
            let idle_port = is_still && now == before && expected == went;
            before.clone_from(&now);
            idle_port.then_some(now)
        })
    }

    /// A page as text, over the unix socket.
    pub fn page(&self, path: &str) -> String {
        page(UnixStream::connect(self.socket()).unwrap(), path)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(Killed(child));
            if std::thread::panicking() {
                eprintln!("the switch said:\n{}", self.log());
            } else {
                self.must_not_have_panicked();
            }
        }
    }
}

/// A process, killed if still running.
struct Killed<'a>(&'a mut Child);

impl Drop for Killed<'_> {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Frames due at egress of the ports, and frames sent or dropped there.
pub fn sums(ports: &[PortView]) -> (u64, u64) {
    let counts = || ports.iter().map(|port| &port.counts);
    let own = |counts: &CountsView| counts.probes + counts.announcements;
    let expected = counts().map(|counts| counts.forwarded + counts.copies + own(counts)).sum();
    // Both directions are in one map; subtracts drops at ingress, which are known.
    let out = |counts: &CountsView| counts.tx_frames + counts.drops.values().sum::<u64>();
    let died_coming_in = |counts: &CountsView| counts.rx_frames.saturating_sub(counts.forwarded + counts.flooded);
    let out = |counts: &CountsView| out(counts).saturating_sub(died_coming_in(counts));
    (expected, counts().map(out).sum())
}

/// Requests a page over a connection.
pub fn page(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: vifswitch\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, mut body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    if !head.contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let mut text = String::new();
    loop {
        let (len, rest) = body.split_once("\r\n").unwrap();
        let (chunk, rest) = rest.split_at(usize::from_str_radix(len, 16).unwrap());
        if chunk.is_empty() {
            return text;
        }
        text.push_str(chunk);
        body = rest.strip_prefix("\r\n").unwrap();
    }
}

/// Timeout of sockets.
pub const TIMEOUT: Duration = Duration::from_secs(TEST_TIMEOUT.tv_sec.unsigned_abs());
