# Open vSwitch as a peer to measure against: with AF_XDP, without a kernel module, and apart from one that
# runs already. To be sourced by bash, with `ovs` the path of ovs-vsctl, `work` a directory and pause() a short wait.
# shellcheck shell=bash

# start_ovs SPACE NETDEV…: joins these netdevs of a namespace; one thread on core 1 does it. Sets `server` and
# `loop` to the process ids of its database and of itself, and `ours` to that of the latter.
start_ovs() {
    local space=$1 usr daemon waited port
    shift
    usr=$(dirname "$(dirname "$ovs")")
    daemon=$(command -v ovs-vswitchd || printf '%s' "$usr/lib/openvswitch-switch/ovs-vswitchd")
    mkdir -p "$work/ovs"
    ovsdb-tool create "$work/ovs/conf.db" "$usr/share/openvswitch/vswitch.ovsschema"
    ovsdb-server "--remote=punix:$work/ovs/db.sock" "--unixctl=$work/ovs/db.ctl" "$work/ovs/conf.db" >"$work/ovs/db" 2>&1 9>&- &
    server=$!
    for ((waited = 0; waited < 200; waited++)); do if [[ -S $work/ovs/db.sock ]]; then break; fi; pause; done
    vsctl --no-wait init
    vsctl --no-wait set Open_vSwitch . other_config:pmd-cpu-mask=0x2
    OVS_RUNDIR=$work/ovs ip netns exec "$space" "$daemon" "unix:$work/ovs/db.sock" "--unixctl=$work/ovs/ctl" >"$work/ovs/log" 2>&1 9>&- &
    loop=$!
    # shellcheck disable=SC2034 # for whoever sources this
    ours=$loop
    # it waits until each of these is done
    vsctl add-br br0 -- set bridge br0 datapath_type=netdev
    for port; do vsctl add-port br0 "$port" -- set interface "$port" type=afxdp options:n_rxq=1; done
    if [[ -n $(vsctl --bare --columns=error list interface | tr -d '\n') ]]; then
        vsctl --columns=name,error list interface >&2
        die "Open vSwitch does not have its ports"
    fi
}

vsctl() { ovs-vsctl --timeout=20 "--db=unix:$work/ovs/db.sock" "$@"; }
