#!/bin/busybox sh
# The first and only program of the guest: mounts the disk, writes files with fsync until the host says stop, reads all
# of them back, unmounts and powers off. What it says on the serial line is in `guest/machine.rs`.
. /prelude.sh
stty -echo < /dev/ttyS0
mkdir -p /disk /tmp/sums
# Freed blocks are discarded at once: requests that are neither reads nor writes.
mount -t ext4 -o discard /dev/vda /disk || fail "mount"

# New files, and files in the place of others, of 4 to 132 KiB; in one of four cases one goes.
writer() {
    n=0
    while [ ! -e /tmp/stop ]; do
        name="w$1-$((n * 7 % 50))"
        dd if=/dev/urandom of="/tmp/data$1" bs=4k count=$((n * 5 % 33 + 1)) 2> /dev/null
        sum=$(sha256sum "/tmp/data$1")
        sum=${sum%% *}
        dd if="/tmp/data$1" of="/disk/$name" bs=16k conv=fsync 2> /dev/null || fail "write $name"
        echo "$sum  /disk/$name" > "/tmp/sums/$name"
        say "wrote $name $sum"
        if [ $((n % 4)) = 3 ]; then
            name="w$1-$((n * 3 % 50))"
            if [ -e "/disk/$name" ]; then
                rm "/disk/$name" "/tmp/sums/$name"
                say "removed $name"
            fi
        fi
        n=$((n + 1))
    done
}

# One file that is changed in place, past the page cache; its twin in memory says what it has to be.
changer() {
    dd if=/dev/urandom of=/tmp/twin bs=64k count=64 2> /dev/null
    dd if=/tmp/twin of=/disk/changed bs=64k conv=fsync 2> /dev/null || fail "write changed"
    n=0
    while [ ! -e /tmp/stop ]; do
        at=$((n * 37 % 1024))
        dd if=/dev/urandom of=/tmp/page bs=4k count=1 2> /dev/null
        for file in /tmp/twin /disk/changed; do
            dd if=/tmp/page of=$file bs=4k seek=$at conv=notrunc 2> /dev/null
        done
        dd if=/tmp/page of=/disk/changed bs=4k seek=$at conv=notrunc oflag=direct 2> /dev/null || fail "change"
        n=$((n + 1))
    done
    sync
    sum=$(sha256sum /tmp/twin)
    sum=${sum%% *}
    echo "$sum  /disk/changed" > /tmp/sums/changed
    say "wrote changed $sum"
}

writer 1 &
writer 2 &
changer &
say "ready"
while read -r word < /dev/ttyS0; do
    [ "$word" != stop ] || break
done
touch /tmp/stop
wait
sync
echo 3 > /proc/sys/vm/drop_caches
cat /tmp/sums/* > /tmp/all
wrong=$(sha256sum -c /tmp/all 2> /dev/null | grep -v ': OK$')
[ -z "$wrong" ] || fail "read $wrong"
fstrim /disk || fail "fstrim"
umount /disk || fail "umount"
dmesg | grep -iE 'i/o error|ext4-fs (error|warning)|blocked for|timed? ?out' | while read -r line; do
    say "wrong kernel: $line"
done
say "unmounted"
poweroff -f
