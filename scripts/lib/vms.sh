# The VMs of scripts/vm-lab: kernel, initramfs, QEMU. Sourced by it.
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the sourcing script

vm_processes=()
# no_timer_check: an emulated VM on a busy host misses timer interrupts, and the kernel would panic for that
console="console=ttyS0 quiet panic=-1 no_timer_check ipv6.disable_ipv6=1"
# What takes a seventh of the time of an emulated boot, and no test needs.
console+=" mitigations=off nokaslr audit=0 apparmor=0 selinux=0 cryptomgr.notests"
# Modules that the VMs load, with their dependencies. The kernel ignores drivers without hardware.
drivers=(virtio_pci virtio_net nf_tables nft_chain_nat nft_nat nft_ct)

# find_kernel CACHE: downloads and unpacks Debian's cloud kernel there, with package lists of its own: the host's stay as they
# are. Sets `kernel` to its image, `version`, and `modules` to the directory that contains lib/modules.
find_kernel() {
    local cache=$1 package log=$1/apt lock
    mkdir -p "$cache"/apt-{lists,cache}/partial
    exec {lock}>"$cache/lock"
    flock "$lock"
    apt=(-o "Dir::State::Lists=$cache/apt-lists" -o "Dir::Cache=$cache/apt-cache" -o APT::Sandbox::User=root)
    package=$(newest_kernel)
    if [[ -z $package || ! -e $cache/$package/whole ]]; then
        say "downloading the kernel for the VMs"
        if ! apt-get "${apt[@]}" update >"$log" 2>&1; then
            tail -n 5 "$log" >&2
            die "apt-get update fails (no network?)"
        fi
        package=$(newest_kernel)
        [[ -n $package ]] || die "apt has no linux-image-cloud-amd64: this needs Debian on amd64"
        rm -rf "${cache:?}/$package" "$cache/$package"_*.deb
        if ! (cd "$cache" && apt-get "${apt[@]}" download "$package") >"$log" 2>&1; then
            tail -n 5 "$log" >&2
            die "cannot download the package $package (no network?)"
        fi
        dpkg-deb -x "$cache/$package"_*.deb "$cache/$package"
        rm "$cache/$package"_*.deb
        depmod -b "$cache/$package" "${package#linux-image-}"
        touch "$cache/$package/whole"
    fi
    exec {lock}>&-
    version=${package#linux-image-} modules=$cache/$package
    kernel=$modules/boot/vmlinuz-$version
}

# Prints nothing without package lists.
newest_kernel() {
    { apt-cache "${apt[@]}" depends linux-image-cloud-amd64 2>/dev/null || true; } |
        awk '/Depends: linux-image-/ { print $2; exit }'
}

# build_disk DIRECTORY FILE: an initramfs with busybox, ip, nft, the drivers, Python and scripts/lib/guest.py
build_disk() {
    local tree=$1 programs=(/usr/bin/python3) program file
    # the host's sh: the one in busybox does not find ip, because busybox has an ip applet
    for program in busybox sh ip nft; do programs+=("$(command -v "$program")"); done
    mkdir -p "$tree"/{bin,dev,proc,sys,drivers,lab}
    {
        printf '%s\n' "${programs[@]}"
        # a program without dependencies is no failure
        ldd "${programs[@]}" 2>/dev/null | grep -oE '/[^ :]+\.so[^ :]*' || true
        # modules that guest.py imports
        /usr/bin/python3 -I -S -B -c '
import sys
sys.path.insert(0, sys.argv[1])
import guest
print(*(file for m in sys.modules.values() if (file := getattr(m, "__file__", None)) and m is not guest), sep="\n")' "$lib"
    } | sort -u >"$tree.files"
    while read -r file; do
        mkdir -p "$tree${file%/*}"
        cp -L "$file" "$tree$file"
    done <"$tree.files"
    for file in "${drivers[@]}"; do modprobe -d "$modules" -S "$version" --show-depends "$file"; done |
        awk '$1 == "insmod" && !known[$2]++ { print $2 }' >"$tree.drivers"
    while read -r file; do
        cp "$file" "$tree/drivers"
        printf '%s\n' "${file##*/}"
    done <"$tree.drivers" >"$tree/drivers/order"
    cp "$lib/guest.py" "$tree/lab"
    cat >"$tree/init" <<END
#!${programs[1]} sh
busybox=${programs[1]}
\$busybox mount -t devtmpfs dev /dev
\$busybox mount -t proc proc /proc
\$busybox mount -t sysfs sys /sys
\$busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/bin
while read -r driver; do insmod "/drivers/\$driver"; done </drivers/order
ip link set lo up
/usr/bin/python3 -I -S /lab/guest.py /dev/ttyS1
poweroff -f
END
    chmod +x "$tree/init"
    (cd "$tree" && find . -print0 | cpio --null -o -H newc --quiet -R 0:0) >"$2"
    rm -rf "$tree" "$tree".{files,drivers}
}

# qemu NAME OPTION…: starts a VM in the namespace of the switch's devices. Writes its process id to $run/NAME.pid and its
# kernel messages to $run/NAME.console.
qemu() {
    local name=$1
    shift
    ip netns exec "$space" qemu-system-x86_64 -name "$name" "${accelerator[@]}" -machine pc -smp 1 -m 128 \
        -nodefaults -no-user-config -display none -no-reboot -kernel "$kernel" -initrd "$run/disk" -append "$console" \
        -serial "file:$run/$name.console" -chardev "socket,id=line,path=$run/$name.line,server=on,wait=off" -serial chardev:line \
        -qmp "unix:$run/$name.qmp,server=on,wait=off" "$@" >"$run/$name.qemu" 2>&1 &
    printf '%s\n' $! >"$run/$name.pid"
    vm_processes+=("$!")
}

# nic_of TAP MAC KIND: sets `netdev` and `device` to QEMU's options for a NIC on this tap. The virtio_net_hdr does not pass
# XDP: for `xdp` the NIC has no offloads.
nic_of() {
    netdev=tap,id=$1,ifname=$1,script=no,downscript=no,vhost=off
    device=virtio-net-pci,netdev=$1,id=nic-$1,mac=$2,romfile=
    if [[ $3 == xdp ]]; then
        device+=,csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off
        device+=,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,mrg_rxbuf=off
    fi
}

# start_vm NAME KIND MAC…: starts a VM with these NICs, in this order, on taps named NAME-0, NAME-1, …
start_vm() {
    local name=$1 kind=$2 number=0 mac options=() netdev device
    shift 2
    for mac; do
        nic_of "$name-$number" "$mac" "$kind"
        options+=(-netdev "$netdev" -device "$device")
        number=$((number + 1))
    done
    qemu "$name" "${options[@]}"
}

# stop_vms: ends all VMs
stop_vms() {
    local one
    for one in "${vm_processes[@]}"; do stop "$one" || true; done
    vm_processes=()
    rm -f "$run"/*.{line,qmp,pid,qemu,console}
}

# ready VM…: waits until they have booted. Prints the console of one that has not.
ready() {
    if vms boots 120 "$@"; then return; fi
    tail -n 20 "$run"/*.console "$run"/*.qemu
    return 1
}

# find_accelerator: KVM, if a guest boots with it in time: the existence of /dev/kvm is not sufficient. Sets `accelerator`
# to QEMU's options.
find_accelerator() {
    local emulated=(-accel "tcg,thread=multi" -cpu max)
    accelerator=("${emulated[@]}")
    if [[ ! -w /dev/kvm ]]; then
        say "no /dev/kvm: the VMs are emulated"
        return
    fi
    # the guest does not need the CPU's vulnerability flags, and not every host can pass them
    accelerator=(-accel kvm -cpu "host,-arch-capabilities")
    qemu probe
    if vms boots 8 probe >"$run/said" 2>&1; then
        say "the VMs run on KVM"
    else
        accelerator=("${emulated[@]}")
        say "/dev/kvm is there, but no guest boots on it ($(tail -n 1 "$run/said")): the VMs are emulated"
    fi
    stop_vms
}
