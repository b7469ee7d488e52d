# Hosts and leaves of scripts/evpn-lab: namespaces, underlay, FRR, VXLAN and bridges. Source it after common.sh.
# shellcheck shell=bash
# shellcheck source=scripts/lib/common.sh
# shellcheck disable=SC2154 # run: of the script

hosts=(1 2 3)
leaves=(1 2)
networks=(1 2)
underlay_mtu=1600 # the networks' 1500 and the 50 bytes of VXLAN
frr=/usr/lib/frr
declare -A daemons=() # process ids by namespace

# host N · leaf N: the namespace
host() { printf 'evpn-host%s' "$1"; }
leaf() { printf 'evpn-leaf%s' "$1"; }
on() {
    local space=$1
    shift
    ip netns exec "$space" "$@"
}

# start_frr SPACE CONFIG: starts zebra and bgpd in a namespace. They talk by sockets of their own.
start_frr() {
    local space=$1 dir=$run/frr-$1
    mkdir -p "$dir"
    cat >"$dir/bgpd.conf"
    # with nexthop objects, zebra 8.4 believes that a group is complete again after a link was down, and the kernel's is not
    printf 'hostname %s\nno zebra nexthop kernel enable\n' "$space" >"$dir/zebra.conf"
    chown -R frr:frr "$dir"
    # not by a function, whose process would be another one
    ip netns exec "$space" "$frr/zebra" -f "$dir/zebra.conf" -i "$dir/zebra.pid" -z "$dir/zserv.api" --vty_socket "$dir" -P 0 \
        -s 4194304 --log "file:$dir/zebra.log" >"$dir/zebra.out" 2>&1 &
    daemons[$space]=$!
    until [[ -S $dir/zserv.api ]]; do
        kill -0 "${daemons[$space]}" 2>/dev/null || die "zebra of $space ends: $(cat "$dir/zebra.out")"
        sleep 0.02
    done
    ip netns exec "$space" "$frr/bgpd" -f "$dir/bgpd.conf" -i "$dir/bgpd.pid" -z "$dir/zserv.api" --vty_socket "$dir" -P 0 \
        --log "file:$dir/bgpd.log" >"$dir/bgpd.out" 2>&1 &
    daemons[$space]+=" $!"
}

stop_frr() {
    local pid
    for pid in ${daemons[$1]:-}; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in ${daemons[$1]:-}; do wait "$pid" 2>/dev/null || true; done
    daemons[$1]=
    rm -f "$run/frr-$1/zserv.api"
}

# bgp_of_leaf N: eBGP to each host. EVPN routes keep their next hop, the address of the host with the station.
bgp_of_leaf() {
    local number=$1 host
    say "hostname leaf$number
router bgp 65100
 bgp router-id 10.254.0.$number
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 timers bgp 3 9"
    for host in "${hosts[@]}"; do
        say " neighbor 10.$number.$host.2 remote-as 6500$host
 neighbor 10.$number.$host.2 timers connect 1
 neighbor 10.$number.$host.2 advertisement-interval 0"
    done
    say " address-family ipv4 unicast"
    for host in "${hosts[@]}"; do say "  neighbor 10.$number.$host.2 activate"; done
    say " exit-address-family
 address-family l2vpn evpn"
    for host in "${hosts[@]}"; do
        say "  neighbor 10.$number.$host.2 activate
  neighbor 10.$number.$host.2 attribute-unchanged next-hop"
    done
    say " exit-address-family"
}

# bgp_of_host N: eBGP to both leaves, for its own address and for EVPN.
bgp_of_host() {
    local number=$1 leaf
    say "hostname host$number
router bgp 6500$number
 bgp router-id 10.255.0.$number
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 bgp bestpath as-path multipath-relax
 timers bgp 3 9"
    for leaf in "${leaves[@]}"; do
        say " neighbor 10.$leaf.$number.1 remote-as 65100
 neighbor 10.$leaf.$number.1 timers connect 1
 neighbor 10.$leaf.$number.1 advertisement-interval 0"
    done
    say " address-family ipv4 unicast
  network 10.255.0.$number/32
  maximum-paths 2"
    for leaf in "${leaves[@]}"; do say "  neighbor 10.$leaf.$number.1 activate"; done
    say " exit-address-family
 address-family l2vpn evpn"
    for leaf in "${leaves[@]}"; do say "  neighbor 10.$leaf.$number.1 activate"; done
    say "  advertise-all-vni
 exit-address-family"
}

# Links between each host and each leaf.
lay_underlay() {
    local host leaf space
    for leaf in "${leaves[@]}"; do add_spaces "$(leaf "$leaf")"; done
    for host in "${hosts[@]}"; do
        space=$(host "$host")
        add_spaces "$space"
        ip -n "$space" addr add "10.255.0.$host/32" dev lo
        for leaf in "${leaves[@]}"; do
            ip link add "leaf$leaf" netns "$space" mtu "$underlay_mtu" type veth \
                peer name "host$host" netns "$(leaf "$leaf")" mtu "$underlay_mtu"
            ip -n "$space" addr add "10.$leaf.$host.2/30" dev "leaf$leaf"
            ip -n "$(leaf "$leaf")" addr add "10.$leaf.$host.1/30" dev "host$host"
            ip -n "$space" link set "leaf$leaf" up
            ip -n "$(leaf "$leaf")" link set "host$host" up
        done
        # several flows to one host use both leaves
        on "$space" sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv4.conf.all.rp_filter=0
    done
    for leaf in "${leaves[@]}"; do on "$(leaf "$leaf")" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0; done
}

# Of each network: a bridge with a VXLAN netdev. The switch has a tap on it, swN, which it creates and which stays.
lay_overlay() {
    local space network number=$1
    space=$(host "$number")
    on "$space" sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true
    for network in "${networks[@]}"; do
        ip -n "$space" link add "br$network" type bridge mcast_snooping 0
        ip -n "$space" link set "br$network" addrgenmode none
        ip -n "$space" link add "vx$network" type vxlan id "10$network" dstport 4789 local "10.255.0.$number" nolearning
        ip -n "$space" link set "vx$network" mtu 1500 master "br$network"
        ip -n "$space" link set "vx$network" type bridge_slave neigh_suppress on learning off
        for netdev in br vx; do ip -n "$space" link set "$netdev$network" up; done
    done
}

# add_vm VM HOST ADDRESS [IP]: a VM is a namespace with one veth, whose other end is on the host and has the VM's name.
# Without an IP address it sends nothing by itself.
add_vm() {
    local vm=$1 number=$2 mac=$3 ip=${4:-}
    add_spaces "evpn-$vm-$number"
    ip link add "$vm" netns "$(host "$number")" type veth peer name eth0 address "$mac" netns "evpn-$vm-$number"
    ip -n "$(host "$number")" link set "$vm" up
    ip -n "evpn-$vm-$number" link set eth0 up
    if [[ -n $ip ]]; then
        ip -n "evpn-$vm-$number" addr add "$ip/24" dev eth0
    else
        ip -n "evpn-$vm-$number" link set eth0 arp off
    fi
}

# fabric_is_complete: each host has each other host as a remote of each network, by both leaves.
fabric_is_complete() {
    local number network other found
    for number in "${hosts[@]}"; do
        for other in "${hosts[@]}"; do
            if ((other == number)); then continue; fi
            found=$(ip -n "$(host "$number")" route show "10.255.0.$other" | grep -c 'via 10\.') || true
            ((found == ${#leaves[@]})) || return 1
            for network in "${networks[@]}"; do has_remote "$number" "$network" "$other" || return 1; done
        done
    done
}

# has_remote HOST NETWORK OTHER: it floods to this host
has_remote() {
    bridge -n "$(host "$1")" fdb show dev "vx$2" | grep -q "^00:00:00:00:00:00 dst 10.255.0.$3 "
}

# await SECONDS COMMAND…: until it succeeds
await() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}
