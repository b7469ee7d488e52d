# What scripts/demo, scripts/tour, scripts/uplinks, scripts/vm-lab, scripts/storm-lab, scripts/test, scripts/fuzz and
# scripts/bench have in common.
# To be sourced by bash.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*"; }

# Ends the script with a reason.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# need COMMAND:PACKAGE…: sees to it that the commands are there. What is missing is installed with
# apt-get, and only that; who may not install is told what is missing.
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
    say "installing what is missing: ${packages[*]}"
    local log
    log=$(mktemp)
    # the package lists may be old or not there at all
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

# Finds cargo also where rustup puts it and sudo does not look.
need_rust() {
    local home
    for home in "${CARGO_HOME:-$HOME/.cargo}" "/home/${SUDO_USER:-}/.cargo"; do
        if ! command -v cargo >/dev/null && [[ -x $home/bin/cargo ]]; then PATH=$PATH:$home/bin; fi
    done
    command -v cargo >/dev/null || die "missing: Rust. See https://rustup.rs, or name a built binary in VIFSWITCH"
    need cc:gcc
}

# find_vifswitch [PROFILE]: sets `vifswitch` to the binary to use: the one named in $VIFSWITCH, or one that is built here
# with that profile: "ci" (the default), which builds quickly, or "release" where speed is measured.
find_vifswitch() {
    vifswitch=${VIFSWITCH:-}
    if [[ -n $vifswitch ]]; then
        [[ -x $vifswitch ]] || die "VIFSWITCH=$vifswitch: no such program"
        vifswitch=$(realpath "$vifswitch")
        return
    fi
    need_rust
    local profile=${1:-ci}
    say "building the binary with the profile $profile (minutes the first time)"
    cargo build --quiet --locked --profile "$profile" --bin vifswitch --manifest-path "$root/Cargo.toml"
    vifswitch=${CARGO_TARGET_DIR:-$root/target}/$profile/vifswitch
}

# add_spaces NAME…: makes network namespaces. Without IPv6, of which the kernel would send packets
# of its own accord: what is counted shall be what was sent.
add_spaces() {
    local space
    for space; do
        ip netns add "$space"
        ip netns exec "$space" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
        ip -n "$space" link set lo up
    done
}

# Deletes those of the namespaces that there are.
remove_spaces() {
    local space
    for space; do
        if [[ -e /run/netns/$space ]]; then ip netns del "$space"; fi
    done
}

# Prints what arrives at a notification socket, as systemd would read it (sd_notify(3)).
NOTIFICATIONS='
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("listening", flush=True)
while True:
    print(s.recv(4096).decode().replace("\n", " "), flush=True)
'

inside=() # how a switch is started, if not just so
aside=()  # switches put aside

# start_switch LOG CONFIG [OPTION…]: starts a switch with these options of `run`, and waits until it
# says that it is ready. Sets `switch` to its process id, which stands in LOG.pid as well. `inside`
# may be a command that runs it somewhere else, as in `ip netns exec`.
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
        # wakes up at the word itself; once a second it looks whether there is still somebody to give it
        read -r -t 1 -u "$notices" word || true
        if ! kill -0 "$switch" 2>/dev/null || ((SECONDS > deadline)); then break; fi
    done
    if [[ $word != READY=1* ]]; then
        cat "$log" >&2
        die "the switch did not become ready"
    fi
}

# Stops the switch that start_switch started, if there is one. Returns its exit code.
stop_switch() {
    local code=0
    if [[ -n ${switch:-} ]]; then stop "$switch" || code=$?; fi
    switch=
    # it wants to say that it is going: the listener goes last
    if [[ -n ${listener:-} ]]; then
        stop "$listener" || true
        listener=
        exec {notices}<&-
        rm -rf "$notify"
    fi
    return "$code"
}

# Puts the switch that start_switch started aside, to start another one beside it.
put_aside() {
    aside+=("$switch $listener $notices $notify")
    switch='' listener=''
}

# Stops all switches, those put aside as well. Fails if one did not end with exit code 0.
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

# stop PID: ends a process that we started, and waits for its end. Returns its exit code.
stop() {
    local pid=$1 code=0
    kill -TERM "$pid" 2>/dev/null || true
    if ! timeout 10 tail -s 0.05 --pid="$pid" -f /dev/null; then kill -KILL "$pid" 2>/dev/null || true; fi
    wait "$pid" 2>/dev/null || code=$?
    return "$code"
}

# ---- what makes a demo ----
#
# A demo sets the first two of these, and begins with begin_demo, which also sees to its end.

spaces=()  # its namespaces
run=       # a directory for the socket, and for what else there is
socket=    # where the switch is asked: api.sock in there, unless the demo says something else
shown=0    # things that held
helper=    # a process that goes when the demo goes
beside=()  # and more of them

title() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
if [[ ! -t 1 ]]; then title() { printf '\n== %s\n' "$1"; }; fi

explain() { fold -s -w 100 <<<"$*"; }

# holds WHAT COMMAND…: one thing shown. Ends the demo if it does not hold.
holds() {
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then
        shown=$((shown + 1))
        printf '   ok    %s\n' "$what"
    else
        printf '   FAIL  %s\n' "$what"
        printf '%s\n' "$output" | sed 's/^/         /'
        die "this does not hold: $what"
    fi
}

fails() { ! "$@"; }

show() { "$vifswitch" show "$@" --socket "$socket"; }

# asks QUESTION WHAT: a question to the JSON of `vifswitch show WHAT`, in Python, where it is `it`.
asks() { show "$2" --json | answers "$1"; }

# answers QUESTION: the same of the JSON at standard input.
answers() {
    python3 -c "
import json, sys
it = json.load(sys.stdin)
if not ($1):
    sys.exit('it is: ' + json.dumps(it, indent=1))"
}

# does COMMAND…: a command of vifswitch, shown with what it says. Ends the demo if it is refused.
does() {
    say "   # vifswitch $*"
    if ! "$vifswitch" "$@" --socket "$socket" >"$run/said" 2>&1; then
        cat "$run/said" >&2
        die "vifswitch $1 was not done"
    fi
    sed 's/^/     /' "$run/said"
    shown=$((shown + 1))
}

# said TEXT: the last command said this
said() { grep -qF -- "$1" "$run/said"; }

pings() { ip netns exec "$1" ping -q -n -c 3 -i 0.1 -W 2 "$2"; }

knows() { ip -n "$1" neigh show "$2" | grep -q "lladdr $3"; }

traffic() { python3 "$root/scripts/traffic.py" "$@"; }

# Begins to listen to what happens: `vifswitch events --follow` in the background.
follow() {
    exec {events}< <(exec "$vifswitch" events --follow --socket "$socket" 9>&-)
    helper=$!
}

# Listens no more. It ends by itself when the switch does.
unfollow() {
    stop "$helper" || true
    helper=
    exec {events}<&-
}

# happens PART…: shows what happens up to the event that has all these parts.
happens() {
    local line part
    while read -r -t 15 -u "$events" line; do
        say "     event: $line"
        for part; do [[ $line == *"$part"* ]] || continue 2; done
        shown=$((shown + 1))
        return
    done
    die "this has not happened within 15 seconds: $*"
}

# begin_demo: makes room for the only demo of this host, and cleans up when it ends, however it does.
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

# What an earlier demo left that had no chance to clean up: its switch and its VMs, its namespaces.
clean_leftovers() {
    local file pid space
    for file in "$run"/*.pid; do
        # it has its configuration from scripts or from its own directory, or it is somebody else by now
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
