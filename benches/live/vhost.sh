#!/bin/busybox sh
# The first program of the guest of `vhost.rs`: reads the disk from 32 places at once, and says twice, five seconds
# apart, how many reads the kernel has done by then.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mkdir /sys
mount -t sysfs none /sys
say() { echo "guest: $*" > /dev/ttyS0; }
for module in virtio virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    insmod "/modules/$module.ko" 2> /dev/null
done
tries=0
while [ ! -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || { say "there is no disk"; poweroff -f; }
    usleep 50000
done
# As on a hypervisor's advice: no scheduler in the guest.
echo none > /sys/block/vda/queue/scheduler
blocks=$(($(cat /sys/block/vda/size) / 8))
n=0
while [ $n -lt 32 ]; do
    dd if=/dev/vda of=/dev/null bs=4k iflag=direct skip=$((blocks / 32 * n)) 2> /dev/null &
    n=$((n + 1))
done
sleep 2
for nth in 1 2; do
    read -r reads rest < /sys/block/vda/stat
    say "reads $reads"
    sleep 5
done
poweroff -f
