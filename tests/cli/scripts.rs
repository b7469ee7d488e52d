//! The scripts: help and arguments of each, verdicts on what they measure, and that nothing of a stopped one is left. Needs
//! root for the latter.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::host::{Namespace, await_that, program};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

fn scripts() -> Vec<PathBuf> {
    let scripts: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o100 != 0))
        .map(|entry| entry.path())
        .collect();
    assert!(scripts.len() >= 8, "{scripts:?}");
    scripts
}

/// Tests give scripts the program in `$VIFSWITCH`; without it they build it, with a profile.
#[test]
fn each_profile_that_a_script_builds_with_exists() {
    let manifest = fs::read_to_string(folder().join("../Cargo.toml")).unwrap();
    let mut profiles = BTreeSet::new();
    for script in scripts() {
        let text = fs::read_to_string(&script).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("find_vifswitch ")) {
            // `"$(if …; then say ci; else say release; fi)"` names two
            let said = line.split("say ").skip(1).filter_map(|rest| rest.split(';').next());
            profiles.extend(said.chain([line]).filter(|word| !word.contains('$')).map(str::to_owned));
        }
    }
    assert!(profiles.len() >= 3, "{profiles:?}");
    for profile in profiles {
        assert!(manifest.contains(&format!("\n[profile.{profile}]\n")), "Cargo.toml has no profile {profile:?}");
    }
}

#[test]
fn each_script_prints_help_and_refuses_an_unknown_option() {
    for script in scripts() {
        let with = |option| -> Output { Command::new(&script).arg(option).output().unwrap() };
        let help = with("--help");
        let text = String::from_utf8_lossy(&help.stdout);
        assert_eq!(help.status.code(), Some(0), "{script:?}: {help:?}");
        for part in ["Purpose: ", "Needs: ", "Exit code: ", script.file_name().unwrap().to_str().unwrap()] {
            assert!(text.contains(part), "{script:?} --help has no {part:?}: {text}");
        }
        let refused = with("--no-such-option");
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{script:?}: {refused:?}");
        assert!(text.contains("--no-such-option") && text.contains("--help"), "{script:?}: {text}");
    }
}

/// Exit code and output of a helper of the scripts with this input.
fn evaluate(helper: &str, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let mut python = Command::new("python3");
    python.arg(folder().join("lib").join(helper)).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // One that fails at once does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

#[test]
fn the_bench_fails_if_a_row_misses_its_target_or_was_not_measured() {
    let table = |results: &str| evaluate("bench_table.py", &["table", "/dev/stdin"], results);
    let tcp = "= part tcp\ntcp.ours.gbit 9 0 50\ntcp.packet.gbit 9 0 50\ntcp.bridge-rps.gbit 5 0 50\n";
    let many = "= part many\nmany.many.mpps 0.8 0 50\n";
    for (results, verdict, code) in [
        (format!("{tcp}tcp.bridge-off.gbit 9.1 0 50\n"), "0 MISSES", 0),
        (format!("{tcp}tcp.bridge-off.gbit 19 0 50\n"), "2 MISSES", 1),
        (tcp.to_owned(), "2 NOT MEASURED", 1),
        // a peer that this host has
        (format!("= peer netfilter\n{tcp}tcp.bridge-off.gbit 9.1 0 50\n"), "2 NOT MEASURED", 1),
        (format!("{many}many.two.mpps 0.8 0 50\n"), "1 meet", 0),
        // others took a third of a core, in all runs or in one
        (format!("{many}many.two.mpps 0.8 33 50\n"), "1 disturbed", 1),
        (format!("{many}many.two.mpps 0.8 33 50\nmany.two.mpps 1.6 0 50\n"), "1 MISSES", 1),
        (String::new(), "nothing was measured", 1),
    ] {
        let (actual, output) = table(&results);
        assert!(output.contains(verdict), "{verdict}: {output}");
        assert_eq!(actual, Some(code), "{output}");
    }
    // latencies of 10 000 frames/s; lost frames have none
    let latencies = |ours: &str, loop_: &str| {
        let kinds = ["busy", "sleep"].map(|kind| {
            let lines = [("ours", "p50", ours), ("ours", "p99", "9"), ("loop", "p50", loop_), ("loop", "p99", "9")];
            lines.map(|(who, what, figure)| format!("latency.{who}-{kind}.{what} {figure} 0 50\n")).concat()
        });
        table(&format!("= part latency\n{}", kinds.concat()))
    };
    for (ours, loop_, verdict, code) in [
        ("4", "4", "2 meet", 0),
        ("inf", "4", "2 MISSES", 1),
        ("4", "inf", "2 meet", 0),
        ("inf", "inf", "2 NOT MEASURED", 1),
    ] {
        let (actual, output) = latencies(ours, loop_);
        assert!(output.contains(verdict), "{verdict}: {output}");
        assert_eq!(actual, Some(code), "{output}");
    }
}

/// Whoever keeps only the end of a long output finds there why a step failed.
#[test]
fn the_test_script_repeats_the_last_lines_of_failed_steps() {
    let functions = r#"sed -n "/^keep_end()/,/^}/p; /^step()/,/^}/p" "$0""#;
    let run = format!(
        r#"set -euo pipefail; ends= steps=() log=$(mktemp); eval "$({functions})"
        step good seq 500 >/dev/null
        step bad sh -c 'seq 600 900; exit 1' >/dev/null || printf '%s' "$ends"
        rm "$log""#
    );
    let output = Command::new("bash").arg("-c").arg(run).arg(folder().join("test")).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    assert!(output.status.success() && lines.first() == Some(&"== how bad failed"), "{output:?}");
    assert_eq!((lines.get(1), lines.last()), (Some(&"781"), Some(&"900")));
}

/// A switch that loses half of the frames spends twice as much on each of the others.
#[test]
fn the_bench_divides_what_cores_spend_by_the_frames_that_arrive() {
    let figures = |name: &str, arrived: &str| format!("cost.{name}.mpps {arrived} 0 50\ncost.{name}.cores 100 0 50\n");
    let results = format!("= part cost\n{}{}", figures("xdp-adaptive", "0.25"), figures("bridge", "0.5"));
    let (_, output) = evaluate("bench_table.py", &["table", "/dev/stdin"], &results);
    let row = output.lines().find(|line| line.contains("per frame that arrives") && line.contains("xdp")).unwrap();
    assert!(row.contains("4000") && row.contains("2000") && row.contains("2.00"), "{row}");
}

/// Every row of the README's table with verdicts has a part of the script that measures it.
#[test]
fn the_rows_of_the_speed_table_of_the_readme_are_those_of_the_bench() {
    let (code, rows) = evaluate("bench_table.py", &["rows"], "");
    assert_eq!(code, Some(0));
    let known: BTreeSet<&str> = rows.lines().collect();
    let readme = fs::read_to_string(folder().join("../README.md")).unwrap();
    let mut lines = readme.lines().skip_while(|line| !line.starts_with("| what | vifswitch (spread) |")).skip(2);
    let cells = lines.by_ref().map_while(|line| line.strip_prefix("| ")?.split_once(" | "));
    let shown: BTreeSet<&str> = cells.map(|(what, _)| what).collect();
    assert!(shown.len() > 5 && shown.is_subset(&known), "{:?}", shown.difference(&known));
}

#[test]
fn the_storm_lab_fails_if_there_was_no_storm_or_others_lost_frames() {
    let run = |at: &str, storm: u32, p99: &str| {
        format!(
            r#"{{"switch": "tap", "class": "broadcast", "pair": "a0:b0", "at": "{at}", "rate": 1000, "lost": 0,
            "storm_per_second": {storm}, "p50_us": 3.0, "p99_us": {p99}, "p99s_us": [{p99}]}}"#
        )
        .replace('\n', "")
    };
    for (here, beside, p99, quick, broken) in [
        (900, 800, "7.5", "", ""),
        (900, 800, "8.5", "", "p99 8.5 us, more than 2.0 times 4.0 us"),
        (900, 800, "null", "", "p99 lost, more than 2.0 times 4.0 us"),
        (0, 800, "3.0", "1", "without a single frame of the storm"),
        (900, 0, "3.0", "1", "without a single frame of the storm"),
    ] {
        let results = format!("{}\n{}\n", run("l0", here, p99), run("x0", beside, "4.0"));
        let (code, output) = evaluate("storms.py", &["all", quick], &results);
        assert!(output.contains(broken), "{broken}: {output}");
        assert_eq!(code, Some(i32::from(!broken.is_empty())), "{output}");
        // the rate of the storm, at the switch and beside it
        assert!(output.contains(&here.to_string()) && output.contains(&beside.to_string()), "{output}");
    }
}

/// Parent, and start time in clock ticks, of a process that is no zombie.
fn process(pid: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then(|| (fields[1].parse().unwrap(), fields[19].parse().unwrap()))
}

/// A process and all that it has started, each with its start time.
fn family(ancestor: u32) -> BTreeSet<(u32, u64)> {
    let names = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_in = |pid: &u32| std::iter::successors(Some(*pid), |pid| Some(process(*pid)?.0)).any(|pid| pid == ancestor);
    names.filter(is_in).filter_map(|pid| Some((pid, process(pid)?.1))).collect()
}

/// A demo that has started its switch.
struct Demo {
    script: Child,
    /// It and all that it has started.
    family: BTreeSet<(u32, u64)>,
    /// The first process in the demo's pid namespace.
    init: u32,
}

impl Demo {
    /// Starts it, and stops it from doing more.
    fn new(temporary: &Path) -> Demo {
        let mut script = Command::new(folder().join("demo"))
            .arg("--force") // beside the switches of other tests
            .env("VIFSWITCH", program())
            .env("TMPDIR", temporary)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(script.stdout.as_mut().unwrap()).lines().map_while(Result::ok);
        let output: Vec<String> = lines.take_while(|line| !line.contains("has reported READY")).collect();
        let family = family(script.id());
        let is_init = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
        };
        let init = family.iter().map(|(pid, _)| *pid).find(is_init);
        let demo = Demo { script, family, init: init.unwrap_or_else(|| panic!("{}", output.join("\n"))) };
        demo.signal(demo.init, Signal::STOP);
        demo
    }

    fn signal(&self, pid: u32, signal: Signal) {
        let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), signal);
    }
}

/// For a test that fails.
impl Drop for Demo {
    fn drop(&mut self) {
        self.signal(self.init, Signal::KILL);
    }
}

/// Two demos with the same names run at the same time. One is terminated, one killed.
#[test]
fn a_demo_that_is_terminated_or_killed_leaves_nothing() {
    let Some(namespace) = Namespace::new() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let mut demos = [Signal::TERM, Signal::KILL].map(|signal| (signal, Demo::new(temporary.path())));
    for (number, (signal, demo)) in demos.iter_mut().enumerate() {
        let inside = format!("/proc/{}/root", demo.init);
        let spaces: Vec<PathBuf> =
            fs::read_dir(format!("{inside}/run/netns")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(spaces.len(), 5, "{spaces:?}");
        // Neither its namespaces nor its files are in the host's directories.
        let device_of = |path: &str| fs::metadata(path).unwrap().dev();
        assert_ne!(device_of(&format!("{inside}/run/vifswitch-demo/api.sock")), device_of("/run"));
        assert_ne!(device_of(&format!("{inside}/run/netns")), device_of("/run"));
        // A veth whose peer is in a namespace of the demo exists as long as that namespace.
        let probe = format!("probe{number}");
        namespace.ip(&format!("link add {probe} type veth peer name {probe} netns {}", spaces[0].display()));
        demo.signal(demo.script.id(), *signal);
        assert!(!demo.script.wait().unwrap().success());
        await_that("the end of all processes", || {
            demo.family.iter().all(|(pid, start)| process(*pid).is_none_or(|it| it.1 != *start)).then_some(())
        });
        await_that("the end of the namespaces", || namespace.link(&probe).is_none().then_some(()));
    }
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

/// A system of its own, killed while a command runs in it.
#[test]
fn a_box_that_is_killed_leaves_nothing() {
    let Some(_root) = Namespace::new() else { return };
    let program = folder().join("lib/box");
    let check = Command::new(&program).arg("--check").output().unwrap();
    if !check.status.success() {
        eprintln!("skipped: a box: {}", String::from_utf8_lossy(&check.stdout));
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    let mount = PathBuf::from(mount.unwrap()[1]);
    for signal in [Signal::TERM, Signal::KILL] {
        let command = "systemctl is-system-running; exec sleep 1000";
        let mut script = Command::new(&program).args(["sh", "-c", command]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(script.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "running\n");
        let (family, cgroup) = (family(script.id()), mount.join(format!("vifswitch-box-{}", script.id())));
        assert!(family.len() > 4 && cgroup.join("system.slice").is_dir(), "{family:?}");
        kill_process(Pid::from_child(&script), signal).unwrap();
        assert!(!script.wait().unwrap().success());
        let is_gone = |(pid, start): &(u32, u64)| process(*pid).is_none_or(|it| it.1 != *start);
        await_that("the end of all processes", || family.iter().all(is_gone).then_some(()));
        await_that("the end of the cgroups", || (!cgroup.exists()).then_some(()));
    }
}
