# Setups measured by scripts/bench: each connects a0 in bench-a with b0 in bench-b; tear_down removes it. Sourced by
# scripts/bench.
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the sourcing script

# shellcheck source=scripts/lib/ovs.sh
source "$lib/ovs.sh"

ours=   # process id of the measured switch or loop
loop=   # process id of a bare loop, of testpmd, or of Open vSwitch
holder= # process id of a guest
server= # process id of an iperf3 server, or of Open vSwitch's database

# write_config KIND POLL PORTS: each port's device is a tap in bench-a (the second one's in bench-b), or the end of a foreign
# veth or tap in bench-sw.
write_config() {
    local port space device frames=8192
    # the rings of a netdev occupy frames permanently
    if [[ $1 == xdp ]]; then frames=$((4096 * ($3 + 2))); fi
    cat <<END
[switch]
api = "$work/api.sock"
state = ""
cores = [1]
poll = "$2"
frames = $frames
[[networks]]
id = "net"
END
    for ((port = 0; port < $3; port++)); do
        if [[ $1 == tap ]]; then
            space=bench-a device="name = \"a$port\", persist = false"
            if ((port == 1)); then space=bench-b device='name = "b0", persist = false'; fi
        else
            space=bench-sw device="name = \"v$port\""
        fi
        cat <<END
[[vms]]
id = "vm$port"
[[vms.ports]]
port_id = "port$port"
network_id = "net"
mac_address = "02:00:00:00:00:$(printf %02x $((port + 1)))"
port_security = "off"
device = { kind = "$1", $device, netns = "$space" }
END
    done
}

# start_ours KIND POLL [PORTS]
start_ours() {
    write_config "$1" "$2" "${3:-2}" >"$work/config.toml"
    start_switch "$work/log" "$work/config.toml"
    ours=$switch
}

# set_up_ours POLL [PORTS]: over taps
set_up_ours() { start_ours tap "$@"; }

# set_up_netdevs KIND POLL [PORTS]: over veths
set_up_netdevs() {
    add_veths "${3:-2}"
    start_ours "$@"
}

# add_veths [PORTS]: v0 to a0, v1 to b0, and further ones to bench-a
add_veths() {
    local port space name
    for ((port = 0; port < ${1:-2}; port++)); do
        space=bench-a name=a$port
        if ((port == 1)); then space=bench-b name=b0; fi
        ip link add "$name" netns "$space" type veth peer name "v$port" netns bench-sw
        ip -n "$space" link set "$name" up
        ip -n bench-sw link set "v$port" up
    done
}

# set_up_bridge on|off [rps]: Linux bridge with or without netfilter hooks; with RPS it runs on core 1, else on that of the
# sender
set_up_bridge() {
    local on=1
    if [[ $1 == off ]]; then on=0; fi
    ip netns exec bench-sw sysctl -qw "net.bridge.bridge-nf-call-iptables=$on" \
        "net.bridge.bridge-nf-call-ip6tables=$on" "net.bridge.bridge-nf-call-arptables=$on"
    add_veths
    ip -n bench-sw link add br0 type bridge
    ip -n bench-sw link set br0 up
    ip -n bench-sw link set v0 master br0
    ip -n bench-sw link set v1 master br0
    if [[ -n ${2:-} ]]; then
        # shellcheck disable=SC2016 # expanded inside
        ip netns exec bench-sw sh -c 'for it in /sys/class/net/v?/queues/rx-*/rps_cpus; do echo 2 >"$it"; done'
    fi
}

# set_up_loop [poll]: a bare read/write loop over two taps with a virtio_net_hdr, as vifswitch uses
set_up_loop() {
    local end
    ip netns exec bench-sw taskset -c 1 "$tapload" forward va vb vnet "$@" >"$work/loop" 2>&1 &
    loop=$!
    ours=$loop
    for _ in {1..100}; do
        if [[ $(ip -n bench-sw -o link show type tun | wc -l) == 2 ]]; then break; fi
        pause
    done
    for end in a b; do
        ip -n bench-sw link set "v$end" netns "bench-$end"
        ip -n "bench-$end" link set "v$end" name "${end}0"
        ip -n "bench-$end" link set "${end}0" up
    done
}

# set_up_testpmd KIND: DPDK's testpmd, which forwards between its two ports without looking at frames, over net_af_xdp or
# net_af_packet
set_up_testpmd() {
    add_veths
    start_testpmd io "net_$1""0,iface=v0" "net_$1""1,iface=v1"
}

# start_testpmd MODE DEVICE DEVICE
start_testpmd() {
    local waited
    mount_pages
    # keep its standard input open: testpmd ends at end of input
    ip netns exec bench-sw stdbuf -oL dpdk-testpmd -l 0,1 --no-pci --file-prefix=bench --huge-dir="$work/huge" -m 256 \
        --vdev="$2" --vdev="$3" -- --forward-mode="$1" --nb-cores=1 --no-lsc-interrupt \
        --total-num-mbufs=32768 --record-core-cycles >"$work/testpmd" 2>&1 <&"$never" &
    loop=$!
    ours=$loop
    for ((waited = 0; waited < 800; waited++)); do
        if grep -qs packets/burst "$work/testpmd"; then return; fi
        if ! kill -0 "$loop" 2>/dev/null; then break; fi
        pause
    done
    tail -n 20 "$work/testpmd" >&2
    die "testpmd does not start"
}

# set_up_ovs [afxdp|dpdk]: Open vSwitch with AF_XDP, its own or that of DPDK
set_up_ovs() {
    add_veths
    if [[ ${1:-} == dpdk ]]; then mount_pages; fi
    start_ovs "${1:-afxdp}" bench-sw v0 v1
}

# Reserves 256 more huge pages of 2 MiB for DPDK, before the script is isolated, and releases them when it has ended in any
# way.
reserve_pages() {
    local count=/proc/sys/vm/nr_hugepages
    printf '%s\n' $(($(<"$count") + 256)) >"$count"
    (
        trap '' TERM
        tail -s 0.2 --pid=$$ -f /dev/null
        printf '%s\n' $(($(<"$count") - 256)) >"$count"
    ) &
}

mount_pages() {
    if [[ -d $work/huge ]]; then return; fi
    mkdir "$work/huge"
    mount -t hugetlbfs -o pagesize=2M bench "$work/huge"
}

# set_up_guest PORTS [testpmd]: a guest on core 0 that has opened the taps whose netdevs are in bench-sw, and the switch with
# AF_XDP on them on core 1; or testpmd, on two of them
set_up_guest() {
    local port line=''
    exec {guest}< <(exec ip netns exec bench-sw taskset -c 0 "$tapload" guest "$1")
    holder=$!
    read -r -t 10 -u "$guest" line || die "the guest does not start"
    exec {guest}<&-
    for ((port = 0; port < $1; port++)); do ip -n bench-sw link set "v$port" up; done
    if [[ ${2:-} == testpmd ]]; then start_testpmd io net_af_xdp0,iface=v0 net_af_xdp1,iface=v1; else start_ours xdp busy "$1"; fi
}

tear_down() {
    local port
    if [[ -n $loop ]]; then stop "$loop" || true; fi
    if [[ -n $server ]]; then stop "$server" || true; fi
    rm -rf "$work/ovs"
    server='' loop='' ours=''
    stop_switch || true
    if [[ -n $holder ]]; then stop "$holder" || true; fi
    holder=''
    ip -n bench-a link del a0 2>/dev/null || true
    ip -n bench-b link del b0 2>/dev/null || true
    ip -n bench-sw link del br0 2>/dev/null || true
    for ((port = 2; port < 64; port++)); do ip -n bench-a link del "a$port" 2>/dev/null || break; done
}
