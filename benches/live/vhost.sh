#!/bin/busybox sh
# The first program of the guest of `vhost.rs`: reads the disk from 32 places at once, and says twice, five seconds
# apart, how many reads the kernel has done by then.
. /prelude.sh
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
