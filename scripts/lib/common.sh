# Functions shared by the scripts. Source it from bash.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
lib=$root/scripts/lib
self=$(realpath "$0")
export PYTHONDONTWRITEBYTECODE=1

say() { printf '%s\n' "$*"; }

# Ends the script with a reason.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# ---- arguments ----

declare -A options=() # options of this run, with their value, or 1
words=()              # other arguments

# read_arguments "KNOWN…" ARGUMENT…: reads the arguments into `options` and `words`. KNOWN are words, options, options with
# a value ("--seconds="), and FILE for one word of any kind. --help and --install are known to all scripts.
read_arguments() {
    local known=" --help --install $1 " name
    shift
    while (($# > 0)); do
        name=${1%%=*}
        if [[ $1 == -h || $1 == --help ]]; then
            print_help
            exit 0
        elif [[ $1 == --* && $known == *" $name= "* ]]; then
            if [[ $1 != *=* ]]; then
                (($# > 1)) || misused "$1 needs a value"
                set -- "$1=$2" "${@:3}"
            fi
            options[$name]=${1#*=}
        elif [[ $1 == -* && $known == *" $1 "* ]]; then
            options[$1]=1
        elif [[ $1 != -* && ($known == *" $1 "* || $known == *" FILE "* && ${#words[@]} == 0) ]]; then
            words+=("$1")
        else
            misused "unknown argument \"$1\"; known:${known% }"
        fi
        shift
    done
}

# Ends the script because of its arguments.
misused() {
    printf '%s: %s; see %s --help\n' "${0##*/}" "$*" "$0" >&2
    exit 2
}

# Prints the comment at the head of the script.
print_help() {
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$self"
    say "Options of all scripts: --help; --install: installs missing Debian packages with apt-get."
    say "Exit code 2: wrong arguments."
}

# number_of_option NAME DEFAULT: prints its value, a number.
number_of_option() {
    local value=${options[$1]-$2}
    [[ $value =~ ^[0-9]+$ ]] || misused "$1: \"$value\" is no number"
    printf '%d' "$((10#$value))"
}

# ---- what a script needs ----

# need COMMAND:PACKAGE…: checks that the commands exist. Installs missing packages with --install; else it names them and
# ends the script.
need() {
    local pair packages=()
    for pair; do
        command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
    done
    if ((${#packages[@]} == 0)); then return; fi
    local how="apt-get install --no-install-recommends ${packages[*]}"
    if [[ -z ${options[--install]:-} ]]; then die "missing: ${packages[*]}; run with --install, or: $how"; fi
    ((EUID == 0)) || die "missing: ${packages[*]}; --install needs root"
    install_packages "${packages[@]}"
}

# Installs Debian packages without starting their services: policy-rc.d forbids it (invoke-rc.d(8)).
install_packages() {
    local policy=/usr/sbin/policy-rc.d code=0 lock ours=
    local how="apt-get install --no-install-recommends $*"
    say "installing missing packages: $*"
    # another script may be installing, beside this one
    exec {lock}</var/lib/dpkg
    flock "$lock"
    if [[ ! -e $policy ]]; then
        ours=$policy
        printf '#!/bin/sh\n# of %s, which deletes it after installing packages\nexit 101\n' "$self" >"$policy"
        chmod 755 "$policy"
    fi
    # the package lists may be outdated or missing
    { DEBIAN_FRONTEND=noninteractive $how -y || { apt-get update && DEBIAN_FRONTEND=noninteractive $how -y; }; } >&2 || code=1
    if [[ -n $ours ]]; then rm -f "$ours"; fi
    exec {lock}<&-
    ((code == 0)) || die "missing: $*, and they could not be installed (no network?); by hand: $how"
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

# find_vifswitch PROFILE: sets `vifswitch` to the binary named in $VIFSWITCH, or builds one with PROFILE: "demo" (built in the
# least time, not optimised), "ci" (the release without link-time optimisation) or "release" (for measurements).
find_vifswitch() {
    vifswitch=${VIFSWITCH:-}
    if [[ -n $vifswitch ]]; then
        [[ -x $vifswitch ]] || die "VIFSWITCH=$vifswitch: no such program"
        vifswitch=$(realpath "$vifswitch")
        export VIFSWITCH=$vifswitch
        return
    fi
    need_rust
    local profile=$1
    say "building the binary with profile $profile (takes minutes the first time)"
    cargo build --quiet --locked --profile "$profile" --bin vifswitch --manifest-path "$root/Cargo.toml"
    vifswitch=$(realpath "${CARGO_TARGET_DIR:-$root/target}/$profile/vifswitch")
    export VIFSWITCH=$vifswitch
}

# built_bench NAME PROFILE: builds a program of benches/ and prints its path.
built_bench() {
    cargo build --quiet --locked --profile "$2" --bench "$1" --manifest-path "$root/Cargo.toml" --message-format=json |
        python3 -c 'import json, sys
for it in map(json.loads, sys.stdin):
    if it.get("executable") and it["target"]["name"] == sys.argv[1]: print(it["executable"])' "$1"
}

# keep_result DIRECTORY NAME COMMAND…: runs a command beside others, and continues if it fails. In the directory NAME.log has
# its output, NAME.end its exit code and duration in seconds.
keep_result() {
    local directory=$1 name=$2 since=$SECONDS code=0
    shift 2
    "$@" >"$directory/$name.log" 2>&1 </dev/null || code=$?
    echo "$code $((SECONDS - since))" >"$directory/$name.end"
}

# ---- isolation from the host ----

# isolate ARGUMENT…: runs the script again with these arguments in namespaces of its own (scripts/lib/isolated), and ends
# with its exit code. Returns inside only. Whatever ends the script, nothing of it is left. Two scripts do not see each
# other.
isolate() {
    if is_isolated; then return; fi
    if [[ -z ${options[--force]:-} ]]; then refuse_beside_switch; fi
    setpriv --pdeathsig KILL "$lib/isolated" "$self" "$@" <&0 &
    wait "$!" || exit "$?"
    exit 0
}

is_isolated() { [[ $$ == 1 && -d /run/host-proc ]]; }

# Ends the script if a switch runs in this network namespace, which the script would disturb.
refuse_beside_switch() {
    local process name command
    for process in /proc/[1-9]*; do
        # a process may end while it is examined
        { read -r name <"$process/comm" && mapfile -d '' command <"$process/cmdline"; } 2>/dev/null || continue
        case $name in
        # not a command of the CLI
        vifswitch) [[ " ${command[*]} " == *" run "* ]] || continue ;;
        ovs-vswitchd* | vpp | vpp_main) ;;
        *) continue ;;
        esac
        if [[ $process/ns/net -ef /proc/self/ns/net ]]; then
            die "$name (process ${process##*/}) runs on this host and would be disturbed; with --force it runs anyway"
        fi
    done
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
    exec {notices}< <(exec python3 -c "$NOTIFICATIONS" "$notify/socket")
    listener=$!
    read -r -t 10 -u "$notices" word || die "python3 does not listen"
    NOTIFY_SOCKET=$notify/socket "${inside[@]}" "$vifswitch" run --config "$config" "$@" >"$log" 2>&1 &
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
# A demo sets `run` and calls begin_demo.

run=       # directory of the socket and other files
socket=    # API socket; default: api.sock in $run
shown=0    # number of passed checks
helper=    # background process of follow

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

traffic() { python3 "$lib/traffic.py" "$@"; }

# Starts `vifswitch events --follow` in the background, from the start of the switch.
follow() {
    exec {events}< <(exec "$vifswitch" events --follow --since 1h --socket "$socket")
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

# begin_demo ARGUMENT…: isolates the demo from the host.
begin_demo() {
    isolate "$@"
    mkdir -p "$run"
    socket=${socket:-$run/api.sock}
}
