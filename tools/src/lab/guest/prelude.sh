# What every guest begins with: its own file systems, words for the serial line, drivers, and a disk that is there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
echo 1 > /proc/sys/kernel/printk
say() { echo "guest: $*" > /dev/ttyS0; }
fail() {
    dmesg | tail -n 8 | while read -r line; do say "kernel: $line"; done
    say "wrong $*"
    poweroff -f
}

# Which of the modules needs which differs by version: twice is enough for any order of the first two.
for module in virtio virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    insmod "/modules/$module.ko" 2> /dev/null
done
tries=0
while [ ! -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || fail "there is no disk"
    usleep 50000
done
