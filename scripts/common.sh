# Functions shared by scripts/demo, scripts/tour, scripts/uplinks, scripts/vm-lab, scripts/storm-lab, scripts/test,
# scripts/fuzz and scripts/bench. Source it from bash.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*"; }

# Ends the script with a reason.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# need COMMAND:PACKAGE…: checks that the commands exist. As root it installs missing packages with apt-get; else it prints
# what is missing and ends the script.
need() {
    local pair packages=()
    for pair; do
        command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
    done
    if ((${#packages[@]} == 0)); then return; fi
    local how="apt-get install --no-install-recommends ${packages[*]}"
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        die "missing: ${packages[*]}. As root: $how"
    fi
    say "installing missing packages: ${packages[*]}"
    local log
    log=$(mktemp)
    # the package lists may be outdated or missing
    if ! DEBIAN_FRONTEND=noninteractive $how -y >"$log" 2>&1 &&
        ! { apt-get update && DEBIAN_FRONTEND=noninteractive $how -y; } >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        die "missing: ${packages[*]}, and they could not be installed (no network?). By hand: $how"
    fi
    rm -f "$log"
}

need_root() {
    ((EUID == 0)) || die "needs root, for network namespaces and taps: sudo $0"
    [[ -c /dev/net/tun ]] || die "needs /dev/net/tun; load the module: modprobe tun"
}

# Adds rustup's cargo to PATH, which sudo omits.
need_rust() {
    local home
    for home in "${CARGO_HOME:-$HOME/.cargo}" "/home/${SUDO_USER:-}/.cargo"; do
        if ! command -v cargo >/dev/null && [[ -x $home/bin/cargo ]]; then PATH=$PATH:$home/bin; fi
    done
    command -v cargo >/dev/null || die "missing: Rust. See https://rustup.rs, or name a built binary in VIFSWITCH"
    need cc:gcc
}

# find_vifswitch [PROFILE]: sets `vifswitch` to the binary named in $VIFSWITCH, or builds one with PROFILE: "ci" (default,
# quick to build) or "release" (for measurements).
find_vifswitch() {
    vifswitch=${VIFSWITCH:-}
    if [[ -n $vifswitch ]]; then
        [[ -x $vifswitch ]] || die "VIFSWITCH=$vifswitch: no such program"
        vifswitch=$(realpath "$vifswitch")
        return
    fi
    need_rust
    local profile=${1:-ci}
    say "building the binary with profile $profile (takes minutes the first time)"
    cargo build --quiet --locked --profile "$profile" --bin vifswitch --manifest-path "$root/Cargo.toml"
    vifswitch=${CARGO_TARGET_DIR:-$root/target}/$profile/vifswitch
}

# add_spaces NAME…: creates network namespaces, without IPv6, because the kernel sends IPv6 packets on its own, which
# would be counted.
add_spaces() {
    local space
    for space; do
        ip netns add "$space"
        ip netns exec "$space" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
        ip -n "$space" link set lo up
    done
}

# Deletes those of the namespaces that exist.
remove_spaces() {
    local space
    for space; do
        if [[ -e /run/netns/$space ]]; then ip netns del "$space"; fi
    done
}

# Receives notifications as a supervisor does and prints them (sd_notify(3)).
NOTIFICATIONS='
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("listening", flush=True)
while True:
    print(s.recv(4096).decode().replace("\n", " "), flush=True)
'

inside=() # command prefix to start a switch with
aside=()  # further running switches

# start_switch LOG CONFIG [OPTION…]: starts a switch with these options of `run` and waits until it reports READY. Sets
# `switch` to its process id, also written to LOG.pid. `inside` may hold a command prefix, such as `ip netns exec`.
start_switch() {
    local log=$1 config=$2 word='' deadline=$((SECONDS + 30))
    shift 2
    notify=$(mktemp -d)
    exec {notices}< <(exec python3 -c "$NOTIFICATIONS" "$notify/socket" 9>&-)
    listener=$!
    read -r -t 10 -u "$notices" word || die "python3 does not listen"
    NOTIFY_SOCKET=$notify/socket "${inside[@]}" "$vifswitch" run --config "$config" "$@" >"$log" 2>&1 9>&- &
    switch=$!
    printf '%s\n' "$switch" >"$log.pid"
    until [[ $word == READY=1* ]]; do
        # returns at once on READY; checks once per second that the process still exists
        read -r -t 1 -u "$notices" word || true
        if ! kill -0 "$switch" 2>/dev/null || ((SECONDS > deadline)); then break; fi
    done
    if [[ $word != READY=1* ]]; then
        cat "$log" >&2
        die "the switch did not become ready"
    fi
}

# Stops the switch started by start_switch, if any. Returns its exit code.
stop_switch() {
    local code=0
    if [[ -n ${switch:-} ]]; then stop "$switch" || code=$?; fi
    switch=
    # the switch notifies before it ends, so the listener ends last
    if [[ -n ${listener:-} ]]; then
        stop "$listener" || true
        listener=
        exec {notices}<&-
        rm -rf "$notify"
    fi
    return "$code"
}

# Keeps the switch started by start_switch running, so that another one can be started.
put_aside() {
    aside+=("$switch $listener $notices $notify")
    switch='' listener=''
}

# Stops all switches. Fails if one did not end with exit code 0.
stop_switches() {
    local code=0 one
    stop_switch || code=$?
    for one in "${aside[@]}"; do
        read -r switch listener notices notify <<<"$one"
        stop_switch || code=$?
    done
    aside=()
    return "$code"
}

# stop PID: ends a child process and waits for it. Returns its exit code.
stop() {
    local pid=$1 code=0
    kill -TERM "$pid" 2>/dev/null || true
    if ! timeout 10 tail -s 0.05 --pid="$pid" -f /dev/null; then kill -KILL "$pid" 2>/dev/null || true; fi
    wait "$pid" 2>/dev/null || code=$?
    return "$code"
}

# ---- functions for demos ----
#
# A demo sets the first two variables and calls begin_demo, which also cleans up at its end.

spaces=()  # namespaces
run=       # directory of the socket and other files
socket=    # API socket; default: api.sock in $run
shown=0    # number of passed checks
helper=    # background process, ended with the demo
beside=()  # further background processes

title() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
if [[ ! -t 1 ]]; then title() { printf '\n== %s\n' "$1"; }; fi

explain() { fold -s -w 100 <<<"$*"; }

# holds WHAT COMMAND…: runs one check. Ends the demo if it fails.
holds() {
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then
        shown=$((shown + 1))
        printf '   ok    %s\n' "$what"
    else
        printf '   FAIL  %s\n' "$what"
        printf '%s\n' "$output" | sed 's/^/         /'
        die "check failed: $what"
    fi
}

fails() { ! "$@"; }

show() { "$vifswitch" show "$@" --socket "$socket"; }

# asks EXPRESSION WHAT: evaluates a Python expression on the JSON of `vifswitch show WHAT`, named `it`.
asks() { show "$2" --json | answers "$1"; }

# answers EXPRESSION: the same on the JSON at standard input.
answers() {
    python3 -c "
import json, sys
it = json.load(sys.stdin)
if not ($1):
    sys.exit('it is: ' + json.dumps(it, indent=1))"
}

# does COMMAND…: runs a vifswitch command and prints it with its output. Ends the demo if it fails.
does() {
    say "   # vifswitch $*"
    if ! "$vifswitch" "$@" --socket "$socket" >"$run/said" 2>&1; then
        cat "$run/said" >&2
        die "vifswitch $1 was not done"
    fi
    sed 's/^/     /' "$run/said"
    shown=$((shown + 1))
}

# said TEXT: the output of the last command contains this
said() { grep -qF -- "$1" "$run/said"; }

pings() { ip netns exec "$1" ping -q -n -c 3 -i 0.1 -W 2 "$2"; }

knows() { ip -n "$1" neigh show "$2" | grep -q "lladdr $3"; }

traffic() { python3 "$root/scripts/traffic.py" "$@"; }

# Starts `vifswitch events --follow` in the background.
follow() {
    exec {events}< <(exec "$vifswitch" events --follow --socket "$socket" 9>&-)
    helper=$!
}

# Stops it. It ends by itself with the switch.
unfollow() {
    stop "$helper" || true
    helper=
    exec {events}<&-
}

# happens PART…: prints events up to the one that contains all these parts.
happens() {
    local line part
    while read -r -t 15 -u "$events" line; do
        say "     event: $line"
        for part; do [[ $line == *"$part"* ]] || continue 2; done
        shown=$((shown + 1))
        return
    done
    die "no such event within 15 seconds: $*"
}

# begin_demo: takes the lock for demos on this host, and cleans up at the end of the script in any case.
begin_demo() {
    exec 9>/run/lock/vifswitch-demo.lock
    flock -w 5 9 || die "another demo is running"
    clean_leftovers
    trap clean_demo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkdir -p "$run"
    socket=${socket:-$run/api.sock}
}

clean_demo() {
    local code=$?
    trap '' INT TERM
    local one
    for one in $helper "${beside[@]}"; do stop "$one" || true; done
    stop_switches || true
    remove_spaces "${spaces[@]}"
    rm -rf "$run"
    exit "$code"
}

# Removes what a killed demo has left: its switch, its VMs, its namespaces.
clean_leftovers() {
    local file pid space
    for file in "$run"/*.pid; do
        # only if its command line names one of our configurations: the process id may have been reused
        if pid=$(cat "$file" 2>/dev/null) && grep -qzF -e "$root/scripts/" -e "$run/" "/proc/$pid/cmdline" 2>/dev/null; then
            say "an earlier demo left process $pid running (${file##*/}): stopping it"
            kill -TERM "$pid"
            timeout 10 tail -s 0.05 --pid="$pid" -f /dev/null || kill -KILL "$pid"
        fi
    done
    for space in "${spaces[@]}"; do
        if [[ -e /run/netns/$space ]]; then
            say "an earlier demo left namespace $space: removing it"
            ip netns del "$space"
        fi
    done
    rm -rf "$run"
}
