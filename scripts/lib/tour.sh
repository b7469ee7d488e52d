# Changes to a running switch; each step is checked as it is shown. Sourced by scripts/demo.
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the sourcing script

spaces=(demo-fw-a demo-fw-b demo-fw-c demo-web demo-db demo-fw-d demo-guest)
state=$run/state.db

# ---- functions ----

# refuses CODE TEXT COMMAND…: vifswitch fails with this exit code and a message with this text.
refuses() {
    local code=0 wanted=$1 text=$2
    shift 2
    "$vifswitch" "$@" --socket "$run/api.sock" >"$run/said" 2>&1 || code=$?
    if ((code != wanted)) || ! said "$text"; then
        say "exit code $code; output:"
        cat "$run/said"
        return 1
    fi
}

# requests METHOD PATH [FILE]: sends an API request with FILE as its body, and prints it. The response is in $run/answer,
# its status in `status`.
requests() {
    local body=()
    if (($# == 3)); then body=(--json "@$3"); fi
    say "   # curl --unix-socket $run/api.sock -X $1 ${body[*]:+${body[*]} }http://vifswitch$2"
    status=$(curl --silent --show-error --max-time 30 --unix-socket "$run/api.sock" -X "$1" "${body[@]}" \
        --output "$run/answer" --write-out '%{http_code}' "http://vifswitch$2")
}

# answered STATUS [EXPRESSION]: checks the last response: its status, and a Python expression on its JSON, named `it`.
answered() {
    if [[ $status != "$1" ]]; then
        say "status $status:"
        cat "$run/answer"
        return 1
    fi
    if (($# > 1)); then answers "$2" <"$run/answer"; fi
}

# counts METRIC PORT: /metrics has a sample of the metric for the port that is not 0.
counts() {
    curl --silent --show-error --max-time 30 --unix-socket "$run/api.sock" http://vifswitch/metrics >"$run/metrics"
    grep "^$1{" "$run/metrics" | grep -F "port=\"$2\"" | grep -v ' 0$'
}

# edits FILE STATEMENT…: writes the current configuration to FILE, edited by Python statements on `it`, `ports` (by id) and
# `networks` (by id).
edits() {
    local file=$1
    shift
    curl --silent --show-error --max-time 30 --unix-socket "$run/api.sock" 'http://vifswitch/v1/config?resolved=true' | python3 -c "
import json, sys
it = json.load(sys.stdin)
networks = {n['id']: n for n in it['networks']}
ports = {p['port_id']: p for vm in it['vms'] for p in vm['ports']}
$(printf '%s\n' "$@")
json.dump(it, sys.stdout, indent=1)" >"$file"
}

# Checks that FILE is the current configuration.
in_force() { edits "$run/now.json" && diff "$1" "$run/now.json"; }

has_port() { asks "any(p['port_id'] == '$1' for p in it)" ports; }

order_of_fw() { asks "[(p['position'], p['port_id']) for p in it if p['device_id'] == 'fw'] == list(enumerate('$*'.split()))" ports; }

link_is() { ip -n "$1" link show "$2" | grep -qF -- "$3"; }

number_of() { ip netns exec "$1" cat "/sys/class/net/$2/ifindex"; }

# ---- the tour ----

title "A switch that runs"
explain "The switch of scripts/demo: fw with three interfaces, web and db. Changes are stored in a state file."
add_spaces "${spaces[@]}"
start_switch "$run/log" "$config" --state "$state"
follow
ip -n demo-fw-a addr add 10.5.1.10/24 dev fw-a
ip -n demo-fw-b addr add 10.5.1.11/24 dev fw-b
ip -n demo-web addr add 10.5.1.1/24 dev web-a
ip -n demo-db addr add 10.5.2.1/24 dev db-a
for _ in fw-a fw-b fw-c web-a db-a; do happens port_up; done
holds "web pings fw-a" pings demo-web 10.5.1.10

title "Attach a VIF by command line"
explain "fw gets a fourth interface, the third one on net1. It follows the others in order."
cat >"$run/fw-d.toml" <<'TOML'
device_id = "fw"
port_id = "fw-d"
network_id = "net1"
mac_address = "02:00:00:00:01:0d"
device = { kind = "tap", name = "fw-d", netns = "demo-fw-d" }
TOML
does attach "$run/fw-d.toml"
holds "it is ACTIVE when the command returns" said "port fw-d of VM fw is ACTIVE"
holds "the next frame reaches it: one from web, received in its namespace" \
    traffic speak demo-web web-a 02:00:00:00:01:01 demo-fw-d fw-d
ip -n demo-fw-d addr add 10.5.1.13/24 dev fw-d
holds "web pings fw-d" pings demo-web 10.5.1.13
holds "its sibling fw-a pings fw-d, through the switch" pings demo-fw-a 10.5.1.13
happens config 'port "fw-d" is new'
happens port_up fw-d
holds "fw sees fw-a, fw-b, fw-c, fw-d, in this order" order_of_fw fw-a fw-b fw-c fw-d
holds "it has metrics" counts vifswitch_port_receive_frames_total fw-d

title "Attach a VIF by curl"
explain "A new VM, with one interface on net1."
cat >"$run/guest.json" <<'JSON'
{ "port_id": "guest-a", "network_id": "net1", "mac_address": "02:00:00:00:01:21",
  "device": { "kind": "tap", "name": "guest-a", "netns": "demo-guest" } }
JSON
requests POST /v1/vms/guest/ports "$run/guest.json"
holds "201, and the port is ACTIVE in the response" answered 201 '[p["status"] for p in it["ports"]] == ["ACTIVE"]'
holds "the next frame reaches it" traffic speak demo-web web-a 02:00:00:00:01:01 demo-guest guest-a
ip -n demo-guest addr add 10.5.1.21/24 dev guest-a
holds "web pings guest" pings demo-web 10.5.1.21
holds "guest pings fw-d" pings demo-guest 10.5.1.13
happens config 'VM "guest" is new'
happens port_up guest-a
show ports
holds "show ports has both, ACTIVE" asks \
    'sorted(p["port_id"] for p in it if p["status"] == "ACTIVE") == ["db-a", "fw-a", "fw-b", "fw-c", "fw-d", "guest-a", "web-a"]' ports
holds "it has metrics" counts vifswitch_port_receive_frames_total guest-a

title "Refused requests change nothing"
edits "$run/before.json"
cat >"$run/twice.json" <<'JSON'
[{ "port_id": "late", "network_id": "net1", "mac_address": "02:00:00:00:01:31",
   "device": { "kind": "tap", "name": "late-a", "netns": "demo-guest" } },
 { "port_id": "late", "network_id": "net1", "mac_address": "02:00:00:00:01:32",
   "device": { "kind": "tap", "name": "late-b", "netns": "demo-guest" } }]
JSON
requests POST /v1/vms/guest/ports "$run/twice.json"
holds "the same port twice in one request: 400, duplicate_port" answered 400 'it["error"]["kind"] == "duplicate_port"'
sed 's/01:21/01:22/' "$run/guest.json" >"$run/other.json"
requests POST /v1/vms/guest/ports "$run/other.json"
holds "an existing port: 409, port_in_use" answered 409 'it["error"]["kind"] == "port_in_use"'
sed 's/01:0d/01:0e/' "$run/fw-d.toml" >"$run/other.toml"
holds "the same by the command line: exit code 1, with the reason" refuses 1 'port "fw-d" is in use' attach "$run/other.toml"
requests POST /v1/vms/guest/ports "$run/guest.json"
holds "one that is exactly so, as after a lost answer: 200, no changes" answered 200 'it["changes"] == []'
sed 's/"fw-d"/"fw-e"/; s/net1/net9/' "$run/fw-d.toml" >"$run/fw-e.toml"
holds "an unknown network: exit code 1, and its name" refuses 1 net9 attach "$run/fw-e.toml"
holds "the configuration is unchanged" in_force "$run/before.json"
holds "no netdev was created" fails eval 'ip -n demo-guest -o link show | grep late || ip -n demo-fw-d link show fw-e'

title "Settings of a port"
does set fw-d admin_state_up=false
happens config admin_state_up
happens port_down fw-d "administratively down"
holds "down: web gets no answer from fw-d" fails pings demo-web 10.5.1.13
does set fw-d admin_state_up=true
happens port_up fw-d
holds "up: web pings fw-d" pings demo-web 10.5.1.13
does set guest-a mac_address=02:00:00:00:01:22
happens config mac_address
holds "the netdev has its new address" link_is demo-guest guest-a 02:00:00:00:01:22
ip -n demo-web neigh flush all
holds "web pings guest" pings demo-web 10.5.1.21
holds "and gets the answer from the new address" knows demo-web 10.5.1.21 02:00:00:00:01:22
printf '%s\n' '{ "network_id": "net2" }' >"$run/move.json"
requests PATCH /v1/ports/guest-a "$run/move.json"
holds "guest moves to net2: 200" answered 200 'len(it["changes"]) == 1'
happens config network_id
holds "its netdev has the MTU of net2" link_is demo-guest guest-a "mtu 9000"
ip -n demo-guest addr add 10.5.2.21/24 dev guest-a
holds "db, on net2, pings guest" pings demo-db 10.5.2.21
holds "web, on net1, no longer does" fails pings demo-web 10.5.1.21

title "Flush FDB entries"
explain "With port security off, guest sends from another address, which the switch learns."
does set guest-a port_security=off
holds "a frame from 02:00:00:00:07:07 behind guest-a is received by db" \
    traffic speak demo-guest guest-a 02:00:00:00:07:07 demo-db db-a
holds "the switch has learned the station at guest-a" asks \
    '[(s["port_id"], s["kind"]) for s in it if s["mac_address"] == "02:00:00:00:07:07"] == [("guest-a", "learned")]' fdb
does flush --network net2 --mac 02:00:00:00:07:07
holds "one entry is flushed" said "flushed 1 entry"
holds "it is not in the FDB" asks 'all(s["mac_address"] != "02:00:00:00:07:07" for s in it)' fdb
does set guest-a port_security=mac

title "Apply a configuration, and revert"
edits "$run/same.json"
does diff "$run/same.json"
holds "the configuration that the switch returns is the one it has: no changes" said "no changes"
explain "Now an operator takes down the interface of his own connection. He uses --confirm 3 as a precaution."
edits "$run/cut.json" 'ports["web-a"]["admin_state_up"] = False'
does diff "$run/cut.json"
holds "the difference is printed" said 'port "web-a": admin_state_up was true and is false'
holds "nothing is changed" in_force "$run/same.json"
does apply "$run/cut.json" --confirm 3
happens config "to be confirmed within 3 seconds"
happens port_down web-a
holds "web is cut off" asks '[p["status"] for p in it if p["port_id"] == "web-a"] == ["DOWN"]' ports
holds "another change is refused until then" refuses 1 "the last change is not confirmed" set fw-d admin_state_up=false
explain "He cannot run vifswitch confirm, so the change is reverted:"
happens config "not confirmed within 3 seconds; reverted"
happens port_up web-a
holds "web pings fw-a" pings demo-web 10.5.1.10
holds "the configuration is unchanged" in_force "$run/same.json"
explain "With confirm the change stays. This time net1 gets another MTU."
edits "$run/mtu.json" 'networks["net1"]["mtu"] = 1400'
does apply "$run/mtu.json" --confirm 60
does confirm
happens config "confirmed: "
holds "no change is waiting for confirmation" refuses 1 "no unconfirmed change" confirm
holds "the netdevs on net1 have the new MTU" eval \
    'link_is demo-web web-a "mtu 1400" && link_is demo-fw-a fw-a "mtu 1400" && link_is demo-fw-d fw-d "mtu 1400"'
holds "10 MiB over TCP, web to fw-a" traffic tcp demo-web demo-fw-a 10.5.1.10 10

title "Detach a VIF"
does detach fw-b
happens config 'port "fw-b" is gone'
happens port_down fw-b detached
holds "its netdev is deleted" fails ip -n demo-fw-b link show fw-b
holds "its siblings keep their order: fw-a, fw-c, fw-d" order_of_fw fw-a fw-c fw-d
holds "web still pings fw-a and fw-d" eval 'pings demo-web 10.5.1.10 && pings demo-web 10.5.1.13'
requests DELETE /v1/ports/fw-b
holds "detaching it again: there is none" answered 204

title "Counter audit"
does show drops --verify
holds "every frame is accounted for, including those of the detached port" said "adds up"

title "A restart"
explain "The switch ends and is started again with the same file. The file is unchanged, so the stored state applies. \
The taps of fw-d and guest-a are persistent: they remain, with their addresses."
edits "$run/before.json"
numbers="$(number_of demo-fw-d fw-d) $(number_of demo-guest guest-a)"
unfollow
ended=0
stop_switch || ended=$?
holds "it ends on SIGTERM with exit code 0" test "$ended" -eq 0
start_switch "$run/log" "$config" --state "$state"
follow
holds "it reports that the changes continue" grep -qF "changes by API stay in effect" "$run/log"
holds "the configuration is unchanged" in_force "$run/before.json"
holds "fw-b does not exist, and fw has fw-a, fw-c, fw-d" order_of_fw fw-a fw-c fw-d
holds "every port is ACTIVE" asks 'len(it) == 6 and all(p["status"] == "ACTIVE" for p in it)' ports
holds "fw-d and guest-a have the same netdevs" test "$(number_of demo-fw-d fw-d) $(number_of demo-guest guest-a)" = "$numbers"
ip -n demo-web addr add 10.5.1.1/24 dev web-a
ip -n demo-db addr add 10.5.2.1/24 dev db-a
holds "web pings fw-d, whose address was not lost" pings demo-web 10.5.1.13
holds "db pings guest, which is still on net2" pings demo-db 10.5.2.21
explain "Earlier events are stored:"
happens config 'port "fw-b" is gone'
"$vifswitch" events --since 10m --socket "$run/api.sock" >"$run/said"
holds "the reverted change included" said "not confirmed within 3 seconds; reverted"
requests DELETE /v1/ports/guest-a
holds "guest-a is detached: 200" answered 200 'it["changes"][0] == "port \"guest-a\" is gone from VM \"guest\""'
holds "its netdev is deleted, although persistent" fails ip -n demo-guest link show guest-a
holds "its VM, which had no other port, is removed" asks '"guest" not in [vm["device_id"] for vm in it]' vms
does show drops --verify
holds "every frame is accounted for" said "adds up"

title "The end"
unfollow
ended=0
stop_switch || ended=$?
holds "the switch ends on SIGTERM with exit code 0" test "$ended" -eq 0

printf '\ntour: all %d checks passed\n' "$shown"
