# The hosts of scripts/libvirt-lab: each is a network namespace with a switch, and a libvirtd in a mount namespace of its own.
# Sourced by it, behind vms.sh.
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the sourcing script

# Directories of a host: what libvirtd and the hook have in the places of their packages.
declare -A places=([libvirt]=/run/libvirt [etc]=/etc/libvirt [lib]=/var/lib/libvirt [cache]=/var/cache/libvirt
    [log]=/var/log/libvirt [vifswitch]=/run/vifswitch [records]=/run/vifswitch-libvirt)

declare -A libvirtds=() # HOST → process id

# add_user: in this mount namespace there is the user of QEMU, which libvirt-daemon-system would make; libvirtd needs it to start
add_user() {
    local file
    if getent passwd libvirt-qemu >/dev/null; then return; fi
    for file in passwd group; do cp "/etc/$file" "$run/$file"; done
    echo "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin" >>"$run/passwd"
    if ! getent group libvirt-qemu >/dev/null; then echo "libvirt-qemu:x:64055:" >>"$run/group"; fi
    for file in passwd group; do mount --bind "$run/$file" "/etc/$file"; done
}

# make_host HOST: directories and settings of libvirt. The hook is the binary itself, as an administrator links it.
make_host() {
    local host=$1 place dir=$run/$1
    for place in "${!places[@]}"; do mkdir -p "$dir/$place" "${places[$place]}"; done
    mkdir -p "$dir"/etc/hooks "$dir/lines" "$run/lines"
    # no cgroups and mount namespaces for QEMU, no virtlogd, no other users: this is no host to protect
    cat >"$dir/etc/qemu.conf" <<END
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
END
    # two hosts have two UUIDs, or libvirt refuses to migrate from one to the other
    cat >"$dir/etc/libvirtd.conf" <<END
auth_unix_rw = "none"
unix_sock_group = "root"
host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
log_outputs = "2:file:$dir/log/libvirtd.log"
END
    ln -s "$vifswitch" "$dir/etc/hooks/qemu"
    ln -s "$vifswitch" "$dir/etc/hooks/vifswitch-libvirt-up"
    ln -s "$vifswitch" "$dir/etc/hooks/vifswitch-libvirt-down"
}

# start_libvirtd HOST: starts it and waits until it answers
start_libvirtd() {
    local host=$1 dir=$run/$1 place mounts=""
    for place in "${!places[@]}"; do mounts+="mount --bind $dir/$place ${places[$place]}; "; done
    mounts+="mount --bind $dir/lines $run/lines; "
    ip netns exec "$host" unshare --mount --uts sh -ec "hostname $host; $mounts exec libvirtd -f $dir/etc/libvirtd.conf -p $dir/libvirtd.pid" \
        >"$dir/libvirtd.out" 2>&1 &
    libvirtds[$host]=$!
    local deadline=$((SECONDS + 30))
    until at_libvirt "$host" version >"$run/said" 2>&1; do
        if ! kill -0 "${libvirtds[$host]}" 2>/dev/null || ((SECONDS > deadline)); then
            tail -n 5 "$dir/libvirtd.out" "$dir/log/libvirtd.log" "$run/said" >&2 || true
            die "libvirtd does not run here: see above"
        fi
        sleep 0.1
    done
}

# stop_libvirtd HOST [SIGNAL]: its VMs run on
stop_libvirtd() {
    local pid=${libvirtds[$1]}
    kill "-${2:-TERM}" "$pid"
    if ! timeout 20 tail -s 0.05 --pid="$pid" -f /dev/null; then die "libvirtd of $1 does not end"; fi
    wait "$pid" 2>/dev/null || true
    unset "libvirtds[$1]"
}

uri() { printf 'qemu+unix:///system?socket=%s' "$run/$1/libvirt/libvirt-sock"; }

at_libvirt() { virsh --quiet -c "$(uri "$1")" "${@:2}"; }

# start_host_switch HOST: the switch of a host, with the configuration $run/HOST.toml
start_host_switch() {
    inside=(ip netns exec "$1")
    start_switch "$run/$1.log" "$run/$1.toml"
    inside=()
}

# nic MAC KIND [TAP]: an interface; for `xdp` without offloads, as docs/integrations/libvirt.md says
nic() {
    local target='' driver=''
    if [[ -n ${3:-} ]]; then target="<target dev='$3'/>"; fi
    if [[ $2 == xdp ]]; then
        driver="<driver name='qemu'><host csum='off' gso='off' tso4='off' tso6='off' ecn='off' ufo='off' mrg_rxbuf='off'/><guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/></driver>"
    fi
    cat <<END
<interface type='ethernet'><mac address='$1'/>$target<script path='/etc/libvirt/hooks/vifswitch-libvirt-up'/><downscript path='/etc/libvirt/hooks/vifswitch-libvirt-down'/><model type='virtio'/>$driver<rom enabled='no'/></interface>
END
}

# port ID MAC NETWORK KIND [ATTRIBUTES]: its description in the metadata
port() { printf "<vs:port id='%s' mac='%s' network='%s' kind='%s' %s/>" "$1" "$2" "$3" "$4" "${5:-}"; }

# domain NAME NUMBER PORTS NICS: the XML of a VM with the kernel and memory disk of scripts/vm-lab. $run/NAME.line is its
# serial line, as vms.py expects it.
domain() {
    cat <<END
<domain type='qemu'>
  <name>$1</name>
  <uuid>6b0dd2f0-6f5c-4a41-9a0c-3c9c0f1e000$2</uuid>
  <metadata><vs:ports xmlns:vs='urn:vifswitch:libvirt'>$3</vs:ports></metadata>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>$kernel</kernel><initrd>$run/disk</initrd><cmdline>$console</cmdline></os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    $4
    <serial type='file'><source path='$run/lines/$1.console'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='$run/lines/$1.line'/><target port='1'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
END
}
