# What scripts of cases say and hear. `@@` begins a line that is meant for the test outside.
emit() { echo "@@ $*"; }

# The test failed; why.
fail() {
    emit "failed $*"
    exit 1
}

# Waits until the test outside types a line, after saying what for, and prints it.
expect() {
    echo "@@ $*" >/dev/console
    local line
    read -r line </dev/console
    echo "$line"
}

# The value of a word KEY=VALUE that the kernel was given.
cmdline() {
    local word
    for word in $(cat /proc/cmdline); do
        case $word in "$1="*) echo "${word#*=}" && return ;; esac
    done
    return 1
}

# Waits at most SECONDS until a command succeeds.
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

# Gives the device at an address to vfio-pci, and prints its group.
bind_vfio() {
    local device=/sys/bus/pci/devices/$1
    [ ! -e "$device/driver" ] || echo "$1" >"$device/driver/unbind"
    echo vfio-pci >"$device/driver_override"
    echo "$1" >/sys/bus/pci/drivers_probe
    [ "$(basename "$(readlink "$device/driver")")" = vfio-pci ] || fail "vfio-pci does not take $1"
    basename "$(readlink "$device/iommu_group")"
}

# The disk of the namespace with an ID, by its name. Linux scans namespaces concurrently and numbers disks as they come.
namespace() {
    local id
    for id in /sys/block/nvme0n*/nsid; do
        [ "$(cat "$id" 2>/dev/null)" = "$1" ] || continue
        id=${id%/nsid}
        [ -b "/dev/${id##*/}" ] && echo "${id##*/}" && return
    done
    return 1
}

# Whether MIB are available, and a little more.
memory_available() { [ "$(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo)" -gt $((($1 + 16) * 1024)) ]; }
