# Open vSwitch to measure against: in userspace with AF_XDP, its own or that of DPDK, independent of one that is already
# running. Sourced from bash, with `ovs` the path of ovs-vsctl, `work` a directory and pause() a short wait; DPDK needs huge
# pages mounted at $work/huge.
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the sourcing script

# Prints the path of the daemon built with DPDK, if installed.
ovs_with_dpdk() {
    local daemon
    daemon=$(dirname "$(dirname "$ovs")")/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk
    if [[ -x $daemon ]]; then printf '%s' "$daemon"; fi
}

# start_ovs afxdp|dpdk SPACE NETDEV…: connects these netdevs of a namespace, with one thread on core 1. Sets `server` and
# `loop` to the process ids of database and daemon, and `ours` to the daemon's.
start_ovs() {
    local kind=$1 space=$2 usr daemon waited port number=0
    shift 2
    usr=$(dirname "$(dirname "$ovs")")
    if [[ $kind == dpdk ]]; then
        daemon=$(ovs_with_dpdk)
    else
        daemon=$(command -v ovs-vswitchd || printf '%s' "$usr/lib/openvswitch-switch/ovs-vswitchd")
    fi
    mkdir -p "$work/ovs"
    ovsdb-tool create "$work/ovs/conf.db" "$usr/share/openvswitch/vswitch.ovsschema"
    ovsdb-server "--remote=punix:$work/ovs/db.sock" "--unixctl=$work/ovs/db.ctl" "$work/ovs/conf.db" >"$work/ovs/db" 2>&1 &
    server=$!
    for ((waited = 0; waited < 200; waited++)); do if [[ -S $work/ovs/db.sock ]]; then break; fi; pause; done
    vsctl --no-wait init
    vsctl --no-wait set Open_vSwitch . other_config:pmd-cpu-mask=0x2
    if [[ $kind == dpdk ]]; then
        vsctl --no-wait set Open_vSwitch . other_config:dpdk-init=true other_config:dpdk-lcore-mask=0x1 \
            other_config:dpdk-socket-mem=512 \
            "other_config:dpdk-extra=--no-pci --file-prefix=bench --huge-dir=$work/huge"
    fi
    OVS_RUNDIR=$work/ovs ip netns exec "$space" "$daemon" "unix:$work/ovs/db.sock" "--unixctl=$work/ovs/ctl" >"$work/ovs/log" 2>&1 &
    loop=$!
    ours=$loop
    # ovs-vsctl waits until each change is applied
    vsctl add-br br0 -- set bridge br0 datapath_type=netdev
    for port; do
        case $kind in
        afxdp) vsctl add-port br0 "$port" -- set interface "$port" type=afxdp options:n_rxq=1 ;;
        dpdk)
            vsctl add-port br0 "d$port" -- set interface "d$port" type=dpdk \
                "options:dpdk-devargs=net_af_xdp$((number++)),iface=$port"
            ;;
        esac
    done
    if [[ -n $(vsctl --bare --columns=error list interface | tr -d '\n') ]]; then
        vsctl --columns=name,error list interface >&2
        die "Open vSwitch has not opened its ports"
    fi
}

vsctl() { ovs-vsctl --timeout=20 "--db=unix:$work/ovs/db.sock" "$@"; }
