# Functions for the scripts of cases. A console line that begins with `@@` is a mark for the test outside of the guest.
emit() { echo "@@ $*"; }

# Fails the case with a reason.
fail() {
    emit "failed $*"
    exit 1
}

# Emits a mark, waits until the test outside types a line, and prints that line.
expect() {
    echo "@@ $*" >/dev/console
    local line
    read -r line </dev/console
    echo "$line"
}

# The value of KEY=VALUE on the kernel's command line.
cmdline() {
    local word
    for word in $(cat /proc/cmdline); do
        case $word in "$1="*) echo "${word#*=}" && return ;; esac
    done
    return 1
}

# Repeats a command until it succeeds, for at most SECONDS.
retry() {
    local left=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        usleep 100000
    done
}

# The addresses of PCI devices VENDOR:DEVICE, as in 0x1234:0x11e8.
devices() {
    local device
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat "$device/vendor"):$(cat "$device/device")" != "$1" ] || echo "${device##*/}"
    done
}

# Binds the device at an address to vfio-pci and prints its group.
bind_vfio() {
    local device=/sys/bus/pci/devices/$1
    [ ! -e "$device/driver" ] || echo "$1" >"$device/driver/unbind"
    echo vfio-pci >"$device/driver_override"
    echo "$1" >/sys/bus/pci/drivers_probe
    [ "$(basename "$(readlink "$device/driver")")" = vfio-pci ] || fail "vfio-pci does not bind $1"
    basename "$(readlink "$device/iommu_group")"
}

# Makes the ordinary user 1000 the owner of VFIO's files, and so the one that may use them.
give_vfio_to_user() {
    local node
    for node in /dev/vfio/* /dev/vfio/devices/* /dev/iommu; do
        [ ! -e "$node" ] || chown 1000:1000 "$node"
    done
    chmod a+rx /dev /dev/vfio
    mkdir -p /etc
    echo user:x:1000:1000::/tmp:/bin/sh >/etc/passwd
    # A copy, because start-stop-daemon starts no program that already runs, and busybox does.
    cp /bin/busybox /tmp/id
    [ "$(as_user /tmp/id -u)" = 1000 ] || fail "start-stop-daemon does not change the user"
}

# Runs a program, by its full path, as the ordinary user with a limit of 8 MiB of locked memory.
as_user() (
    program=$1
    shift
    ulimit -l 8192
    start-stop-daemon -S -c user:1000 -x "$program" -- "$@"
)

# The name of the disk with a namespace ID. Linux scans namespaces concurrently and numbers disks in the order of their arrival.
namespace() {
    local id
    for id in /sys/block/nvme0n*/nsid; do
        [ "$(cat "$id" 2>/dev/null)" = "$1" ] || continue
        id=${id%/nsid}
        [ -b "/dev/${id##*/}" ] && echo "${id##*/}" && return
    done
    return 1
}

# Whether MIB and a reserve are available.
memory_available() { [ "$(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo)" -gt $((($1 + 16) * 1024)) ]; }
