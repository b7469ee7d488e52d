//! Power loss: whatever is lost that no sync has made durable, the state opens, with every change that a client was
//! answered. Needs root; makes its own namespace; needs strace.
//!
//! strace records what the switch does to the directory of its state, and when it answers. The test repeats that up to a
//! moment on a model of a disk, loses some or all of what is not durable (whole writes, sectors of them, new names), and
//! opens the rest with the code of the store. A file's sync makes its contents durable, its directory's sync its name.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::Method;
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};
use vifswitch::control::api::client::Client;
use vifswitch::control::state::events::EventKind;
use vifswitch::control::state::store::{DesiredState, Store};
use vifswitch::wire::Mac;

/// Calls that change files, and those by which the switch answers. Others that change files are refused by [`step`].
const CALLS: &str = "trace=open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,\
                     copy_file_range,fsync,fdatasync,unlink,unlinkat,rename,renameat,renameat2,link,linkat,mkdir,mkdirat";

/// Begin of the answer to a successful request.
const ANSWER: &[u8] = b"HTTP/1.1 2";

/// Further VMs of the configuration.
const OTHERS: usize = 400;

/// A port of the first VM, without a device. Each change of the VM writes its many addresses too: the log grows until it is
/// written back.
const LARGE: &str = "heavy";

/// Its addresses: long ones, as reading and writing each takes longer than its bytes do.
const ADDRESSES: usize = 11_000;

/// Maximum ports beside that one.
const PORTS: usize = 5;

/// One of so many writes is followed by a power loss.
const WRITES: usize = 16;

/// Changes in each run of the switch.
const CHANGES: usize = 16;

/// A step of the recording.
#[derive(Debug)]
enum Step {
    MakeDirectory(PathBuf),
    /// Creates a file, if it does not exist.
    MakeFile(PathBuf),
    Write(PathBuf, Change),
    Sync(PathBuf),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
    /// The switch answers a change, with its generation.
    Answer(u64),
}

/// A change of a file's contents.
#[derive(Debug, Clone)]
enum Change {
    Bytes { at: usize, bytes: Vec<u8> },
    Len(usize),
}

/// Bytes of a text of strace, which writes some of them as `\xNN`.
fn unescape(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    let (mut rest, mut bytes) = (text.as_bytes(), Vec::with_capacity(text.len() / 4));
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = match after {
            [b'x', high, low, after @ ..] if first == b'\\' => (digit(*high) << 4 | digit(*low), after),
            _ => (first, after),
        };
        bytes.push(byte);
        rest = after;
    }
    bytes
}

/// The step of a call in `directory`, from its line of strace; `None` for others, and for calls that failed.
fn step(line: &str, directory: &Path) -> Option<Step> {
    let (call, arguments) = line.split_once('(')?;
    let (arguments, result) = arguments.rsplit_once(" = ")?;
    if result.starts_with('-') {
        return None;
    }
    let path = |text: &str| PathBuf::from(OsStr::from_bytes(&unescape(text)));
    // All strings are in hexadecimal digits, so that no quote or bracket is part of one.
    let texts = || arguments.split('"').skip(1).step_by(2);
    let name = |index: usize| texts().nth(index).map(path);
    let open_file = || arguments.split_once('<')?.1.split_once('>').map(|(name, _)| path(name));
    let number = |from_end: usize| -> usize {
        arguments.trim_end().trim_end_matches(')').rsplit(", ").nth(from_end).unwrap().parse().unwrap()
    };
    // Not counters: they are not synced, and begin at zero after a power loss.
    let is_state = |path: &PathBuf| path.starts_with(directory) && path.extension().is_none_or(|it| it != "counters");
    match call {
        // The name of the directory itself is in its parent.
        "fsync" | "fdatasync" => {
            open_file().filter(|path| is_state(path) || directory.parent() == Some(path)).map(Step::Sync)
        }
        "pwrite64" => {
            let bytes = unescape(texts().next()?);
            assert_eq!(result, bytes.len().to_string(), "written in part, or cut by strace");
            open_file().filter(is_state).map(|path| Step::Write(path, Change::Bytes { at: number(0), bytes }))
        }
        "ftruncate" => open_file().filter(is_state).map(|path| Step::Write(path, Change::Len(number(0)))),
        "open" | "openat" if arguments.contains("O_CREAT") => name(0).filter(is_state).map(Step::MakeFile),
        "open" | "openat" => None,
        "mkdir" => name(0).filter(is_state).map(Step::MakeDirectory),
        "unlink" => name(0).filter(is_state).map(Step::Unlink),
        "rename" | "renameat2" => Some(Step::Rename(name(0).filter(is_state)?, name(1)?)),
        _ => {
            let paths = open_file().into_iter().chain(texts().take(2).map(path));
            assert!(!paths.into_iter().any(|path| is_state(&path)), "cannot be repeated: {line:.200}");
            None
        }
    }
}

/// The generation in the head of an answer, from the line of strace.
fn generation(call: &str) -> u64 {
    let text: Vec<u8> = call.split('"').skip(1).step_by(2).flat_map(unescape).collect();
    let text = String::from_utf8_lossy(&text).to_lowercase();
    let (_, tag) = text.split_once("etag: \"").unwrap_or_else(|| panic!("without a generation: {text}"));
    tag.split('"').next().unwrap().parse().unwrap()
}

/// The steps of a log of strace: calls of several threads, some of which are interrupted by those of others.
fn steps(log: &str, directory: &Path) -> Vec<Step> {
    let answer: String = ANSWER.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let (mut steps, mut unfinished) = (Vec::new(), HashMap::new());
    for line in log.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        // The client may have it from here on.
        steps.extend((call.starts_with("writev") && call.contains(&answer)).then(|| Step::Answer(generation(call))));
        if let Some(begin) = call.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, begin.trim_end());
        } else if let Some((_, end)) = call.strip_prefix("<... ").and_then(|call| call.split_once(" resumed>")) {
            let begin = unfinished.remove(thread).unwrap();
            steps.extend(step(&format!("{begin}{end}"), directory));
        } else {
            steps.extend(step(call, directory));
        }
    }
    steps
}

/// A file of the model.
#[derive(Debug, Clone, Default)]
struct File {
    durable: Vec<u8>,
    /// Changes since the last sync.
    changes: Vec<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Node {
    Directory,
    /// By its place in [`Model::files`].
    File(usize),
}

/// A change of names in a directory.
#[derive(Debug, Clone)]
struct Naming {
    removed: Option<PathBuf>,
    added: Option<(PathBuf, Node)>,
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        if let Some(path) = &self.removed {
            names.remove(path);
        }
        names.extend(self.added.clone());
    }

    /// The directory.
    fn place(&self) -> Option<&Path> {
        self.removed.as_ref().or(self.added.as_ref().map(|(path, _)| path))?.parent()
    }
}

/// A model of a disk, with what is durable and what is not yet.
#[derive(Debug, Default)]
struct Model {
    files: Vec<File>,
    durable: BTreeMap<PathBuf, Node>,
    /// Changes of names since the last sync of their directory.
    namings: Vec<Naming>,
}

/// What a power loss leaves of changes that are not durable.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// All, as after a kill.
    All,
    Nothing,
    /// Of each file those up to some moment.
    Earlier,
    /// Some sectors of this length.
    Some(usize),
}

impl Model {
    /// Current names, durable or not.
    fn names(&self) -> BTreeMap<PathBuf, Node> {
        let mut names = self.durable.clone();
        self.namings.iter().for_each(|naming| naming.apply(&mut names));
        names
    }

    fn file(&mut self, path: &Path) -> Option<&mut File> {
        let Some(&Node::File(file)) = self.names().get(path) else { return None };
        self.files.get_mut(file)
    }

    fn repeat(&mut self, step: &Step) {
        match step {
            Step::MakeDirectory(path) => {
                self.namings.push(Naming { removed: None, added: Some((path.clone(), Node::Directory)) });
            }
            Step::MakeFile(path) if self.file(path).is_none() => {
                let node = Node::File(self.files.len());
                self.files.push(File::default());
                self.namings.push(Naming { removed: None, added: Some((path.clone(), node)) });
            }
            Step::MakeFile(_) | Step::Answer(_) => {}
            Step::Write(path, change) => {
                // A file without a name is of no use after the next start.
                if let Some(file) = self.file(path) {
                    file.changes.push(change.clone());
                }
            }
            Step::Sync(path) => {
                if let Some(file) = self.file(path) {
                    file.durable = contents(file, Left::All, &mut random());
                    file.changes.clear();
                }
                let of_it = |naming: &mut Naming| naming.place() == Some(path);
                for naming in self.namings.extract_if(.., of_it) {
                    naming.apply(&mut self.durable);
                }
            }
            Step::Unlink(path) => self.namings.push(Naming { removed: Some(path.clone()), added: None }),
            Step::Rename(from, to) => {
                let node = self.names()[from];
                self.namings.push(Naming { removed: Some(from.clone()), added: Some((to.clone(), node)) });
            }
        }
    }

    /// Whether a power loss may lose something.
    fn may_lose(&self) -> bool {
        !self.namings.is_empty() || self.files.iter().any(|file| !file.changes.is_empty())
    }

    /// The files after a power loss.
    fn after_loss(&self, left: Left, random: &mut TestRng) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut names = self.durable.clone();
        kept(&self.namings, left, random).iter().for_each(|naming| naming.apply(&mut names));
        let all = names.clone();
        // A file is gone with its directory.
        names.retain(|path, _| !matches!(all.get(path.parent().unwrap()), None | Some(Node::File(_))));
        let files = names.into_iter().filter_map(|(path, node)| match node {
            Node::Directory => None,
            Node::File(file) => Some((path, contents(&self.files[file], left, random))),
        });
        files.collect()
    }
}

/// Those of `changes` that are left.
fn kept<'a, T>(changes: &'a [T], left: Left, random: &mut TestRng) -> Vec<&'a T> {
    let until = match left {
        Left::Nothing => 0,
        Left::Earlier => random.next_u32() as usize % (changes.len() + 1),
        Left::All | Left::Some(_) => changes.len(),
    };
    let mut is_kept = |_: &&T| !matches!(left, Left::Some(_)) || random.next_u32().is_multiple_of(2);
    changes[..until].iter().filter(|change| is_kept(change)).collect()
}

/// Contents of a file after a power loss.
fn contents(file: &File, left: Left, random: &mut TestRng) -> Vec<u8> {
    let mut contents = file.durable.clone();
    for change in kept(&file.changes, left, random) {
        match change {
            Change::Len(len) => contents.resize(*len, 0),
            Change::Bytes { at, bytes } => {
                let sector = match left {
                    Left::Some(sector) => sector,
                    _ => usize::MAX,
                };
                contents.resize(contents.len().max(at + bytes.len()), 0);
                let mut from = *at;
                while from < at + bytes.len() {
                    // Sectors are aligned in the file.
                    let to = (from / sector + 1).saturating_mul(sector).min(at + bytes.len());
                    if sector == usize::MAX || random.next_u32().is_multiple_of(2) {
                        contents[from..to].copy_from_slice(&bytes[from - at..to - at]);
                    }
                    from = to;
                }
            }
        }
    }
    contents
}

fn random() -> TestRng {
    TestRng::deterministic_rng(RngAlgorithm::ChaCha)
}

/// A switch with its state in a directory that it makes, recorded by strace.
struct Recorded {
    daemon: Daemon,
    host: Namespace,
    client: Client,
    runtime: tokio::runtime::Runtime,
    steps: Vec<Step>,
    /// Ports in the order in which they were attached, with their MAC limits.
    ports: Vec<(Vif, Option<usize>)>,
    /// The ports after each change, in order of the generations; first those of the beginning.
    made: Vec<BTreeMap<String, Option<usize>>>,
    /// For each change, the last one of those that were requested together with it.
    together: Vec<usize>,
    /// Generation of the beginning.
    first: Option<u64>,
}

impl Recorded {
    fn new() -> Option<Recorded> {
        let host = Namespace::new()?;
        if Command::new("strace").arg("--version").output().is_err() {
            eprintln!("skipped: needs strace");
            return None;
        }
        let daemon = Daemon::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = Client::new(daemon.socket());
        let recorded = Recorded {
            daemon,
            host,
            client,
            runtime,
            steps: Vec::new(),
            ports: Vec::new(),
            made: vec![BTreeMap::from([(LARGE.to_owned(), None)])],
            together: vec![0],
            first: None,
        };
        let others = (0..OTHERS).map(|number| format!("[[vms]]\nid = \"other-{number}\"\nshare_mac = true\n"));
        let address = |number: usize| format!("\"fd00:1111:1111:1111:1111:1111:1111:{:x}\"", 0x1000 + number);
        let addresses = (0..ADDRESSES).map(address).collect::<Vec<_>>().join(",");
        let heavy = format!(
            "[[vms]]\nid = \"vm\"\n[[vms.ports]]\nport_id = {LARGE:?}\nnetwork_id = \"net1\"\n\
             mac_address = \"02:00:00:00:66:01\"\ndevice = {{ kind = \"packet\", name = \"none\" }}\n\
             fixed_ips = [{addresses}]\n"
        );
        let text = config(&recorded.daemon.socket(), "", &[("net1", 1500)], &[]) + &heavy + &others.collect::<String>();
        recorded.daemon.configure(&keeping(&text, &recorded.state()));
        Some(recorded)
    }

    /// Path of the state; its directory does not exist before.
    fn state(&self) -> PathBuf {
        self.daemon.state().parent().unwrap().join("kept/state.db")
    }

    fn directory(&self) -> PathBuf {
        self.state().parent().unwrap().to_owned()
    }

    /// Starts the switch, makes changes, and ends it by `signal`.
    fn run(&mut self, signal: Signal) {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut strace = Command::new("strace");
        // In the background, so that the child process is the switch.
        strace.args(["-D", "-f", "-y", "-xx", "-s", "1000000", "--seccomp-bpf", "-e", CALLS, "-o"]);
        strace.arg(log.path()).arg(self.daemon.command().get_program());
        let file = self.daemon.file();
        self.daemon.start_as(strace, "--config", &file);
        let before = self.made.len();
        let pid = self.daemon.pid();
        (0..CHANGES).for_each(|turn| if turn % 4 == 3 { self.change_at_once() } else { self.change() });
        self.daemon.stop(signal);
        let log = await_that("the end of the recording", || {
            let log = fs::read_to_string(log.path()).unwrap();
            let ends = |line: &str| line.starts_with(&format!("{pid} ")) && line.contains(" +++ ");
            log.lines().last().is_some_and(ends).then_some(log)
        });
        self.steps.extend(steps(&log, &self.directory()));
        let answers = self.steps.iter().filter(|step| matches!(step, Step::Answer(_))).count();
        assert_eq!(answers, self.made.len() - 1, "each answer is recorded, {before} of them before");
    }

    /// The ports now.
    fn ports_now(&self) -> BTreeMap<String, Option<usize>> {
        let ports = self.ports.iter().map(|(vif, limit)| (vif.port.clone(), *limit));
        ports.chain([(LARGE.to_owned(), None)]).collect()
    }

    /// Records changes that were requested together, each made before the next one.
    fn record(&mut self, made: Vec<BTreeMap<String, Option<usize>>>) {
        let last = self.made.len() + made.len() - 1;
        self.together.extend(made.iter().map(|_| last));
        self.made.extend(made);
    }

    /// Changes a key of each port, all at once.
    fn change_at_once(&mut self) {
        let number = self.made.len();
        let socket = self.daemon.socket();
        let mut answers: Vec<(u64, usize, usize)> = self.runtime.block_on(async {
            let mut running = tokio::task::JoinSet::new();
            for (index, (vif, _)) in self.ports.iter().enumerate() {
                let (client, path) = (Client::new(&socket), format!("/v1/ports/{}", vif.port));
                // Another one than it has.
                let limit = 3001 + number * 10 + index;
                running.spawn(async move {
                    let body = json!({ "mac_limit": limit });
                    let answer = client.request(Method::PATCH, &path, Some(&body)).await.unwrap();
                    let answer: Value = serde_json::from_str(&answer).unwrap();
                    (answer["generation"].as_u64().unwrap(), index, limit)
                });
            }
            running.join_all().await
        });
        // In the order in which they were made.
        answers.sort_unstable();
        assert!(answers.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0), "{answers:?}");
        let mut made = Vec::new();
        for (_, index, limit) in answers {
            self.ports[index].1 = Some(limit);
            made.push(self.ports_now());
        }
        self.record(made);
    }

    /// Makes the next change.
    fn change(&mut self) {
        let number = self.made.len();
        let request = |method: Method, path: &str, body: Option<&Value>| {
            self.runtime.block_on(self.client.request(method, path, body)).unwrap();
        };
        match number % 6 {
            _ if self.ports.is_empty() || number % 3 == 1 && self.ports.len() < PORTS => {
                let vif = Vif::new("vm", number as u8, &self.host);
                let device = json!({"kind": "tap", "name": vif.name, "netns": vif.netns});
                let body = json!({"port_id": vif.port, "network_id": vif.network, "mac_address": vif.mac.to_string(),
                    "port_security": "off", "device": device});
                request(Method::POST, "/v1/vms/vm/ports", Some(&body));
                // A station to be stored.
                let station = Mac::from_bits(0x0200_0000_7700 + number as u64);
                Nic::new(&self.host, &vif.name).send(&experiment(Mac::BROADCAST, station, b"here"));
                self.ports.push((vif, None));
            }
            1 if self.ports.len() > 2 => {
                let (vif, _) = self.ports.remove(0);
                request(Method::DELETE, &format!("/v1/ports/{}", vif.port), None);
            }
            _ => {
                let (vif, limit) = self.ports.last_mut().unwrap();
                // Of various lengths.
                let new = if number.is_multiple_of(2) { number } else { number * 80 };
                *limit = Some(new);
                request(Method::PATCH, &format!("/v1/ports/{}", vif.port), Some(&json!({ "mac_limit": new })));
            }
        }
        self.record(vec![self.ports_now()]);
    }
}

/// The ports of a stored configuration, with their MAC limits.
fn stored_ports(desired: Option<&DesiredState>) -> BTreeMap<String, Option<usize>> {
    let vms = desired.and_then(|desired| desired.config["vms"].as_array()).into_iter().flatten();
    let ports = vms.filter_map(|vm| vm["ports"].as_array()).flatten();
    let limit = |port: &Value| port["mac_limit"].as_u64().map(|limit| limit as usize);
    ports.map(|port| (port["port_id"].as_str().unwrap().to_owned(), limit(port))).collect()
}

/// Opens a state, checks all of it, and changes it. Returns its ports, and the number of changes of which it has events.
async fn open(path: &Path) -> Result<(BTreeMap<String, Option<usize>>, usize), String> {
    let (store, desired) = Store::open(path.to_owned()).await.map_err(|why| why.to_string())?;
    store.verify().await.map_err(|why| why.to_string())?;
    let events = store.events(None, usize::MAX).await.map_err(|why| why.to_string())?;
    let changes = events.iter().filter(|event| event.kind == EventKind::Config).count();
    store.stations_page(0, usize::MAX).await.map_err(|why| why.to_string())?;
    let ports = stored_ports(desired.as_ref());
    if let Some(desired) = desired {
        store.commit(desired, events.into_iter().take(1).collect()).await.map_err(|why| why.to_string())?;
    }
    store.close().await;
    Ok((ports, changes))
}

#[test]
fn answered_changes_survive_a_power_loss_at_any_moment() {
    let Some(mut recorded) = Recorded::new() else { return };
    // The log of a killed switch is read by the next run, that of a stopped one is written back.
    let state = recorded.state();
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        let before = recorded.steps.len();
        recorded.run(signal);
        let is_written_back = |step: &Step| matches!(step, Step::Write(path, _) if *path == state);
        assert!(recorded.steps[before..].iter().any(is_written_back), "the log has not grown enough");
    }
    // In memory, where a sync costs no time.
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = place.path().join("kept/state.db");
    let lay = |files: &BTreeMap<PathBuf, Vec<u8>>| {
        let _ = fs::remove_dir_all(path.parent().unwrap());
        for (name, bytes) in files {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path.with_file_name(name.file_name().unwrap()), bytes).unwrap();
        }
    };
    let mut random = random();
    let base = recorded.directory().parent().unwrap().to_owned();
    let mut model = Model { durable: BTreeMap::from([(base, Node::Directory)]), ..Model::default() };
    let (mut answers, mut newest, mut losses) = (0, 0, 0);
    for (moment, step) in recorded.steps.iter().enumerate() {
        model.repeat(step);
        if let Step::Answer(generation) = step {
            answers += 1;
            let first = *recorded.first.get_or_insert(generation - 1);
            newest = newest.max((generation - first) as usize);
        }
        if !model.may_lose() {
            continue;
        }
        let all = [Left::Nothing, Left::Earlier, Left::Some(512), Left::Some(4096), Left::All];
        // Each kind of loss after an answer, else one.
        let chosen = random.next_u32() as usize % (all.len() * WRITES);
        let kinds = match step {
            Step::Answer(_) => &all[..],
            Step::Write(..) if chosen >= all.len() => continue,
            _ => &all[chosen % all.len()..=chosen % all.len()],
        };
        for &left in kinds {
            let files = model.after_loss(left, &mut random);
            lay(&files);
            losses += 1;
            let what = format!("after step {moment}, {answers} answers, {left:?} left: {:?}", files.keys());
            let (ports, changes) = recorded.runtime.block_on(open(&path)).unwrap_or_else(|why| panic!("{what}: {why}"));
            // The next change may have been made, with those requested together with it, and is then complete.
            let most = recorded.together.get(answers + 1).copied().unwrap_or(answers);
            assert!((newest..=most).contains(&changes), "{what}: events of {changes} changes, {newest} to {most}");
            // Before the first answer, the configuration of the file may not be stored yet.
            let is_unstored = answers == 0 && ports.is_empty();
            assert!(is_unstored || ports == recorded.made[changes], "{what}: {changes} changes: {ports:?}");
        }
    }
    // The recording is complete: repeated without a loss, it results in the same files.
    let files = model.after_loss(Left::All, &mut random);
    for (name, bytes) in &files {
        assert!(fs::read(name).unwrap() == *bytes, "{}", name.display());
    }
    assert_eq!(fs::read_dir(recorded.directory()).unwrap().count(), files.len());
    println!("{} steps, {losses} losses", recorded.steps.len());
}
