#!/usr/bin/env bash
# Builds, then runs the whole main job in a temporary folder, on images made by qemu-img with real file systems in
# them, showing each step. With an image: the same on a copy of it.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/test.sh --install
cargo build --release --quiet -p dchain-tools
PATH="$PWD/target/release:$PATH:/usr/sbin:/sbin"
given=${1:+$(realpath "$1")}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

title() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
# Shows a command, then runs it.
run() {
    printf '$ %s\n' "$*"
    "$@"
}
# The same of a line for a shell.
shell() {
    printf '$ %s\n' "$1"
    bash -c "$1"
}
# Says that qemu-img sees the same bytes in two images, or stops.
same() {
    printf 'qemu-img agrees: '
    qemu-img compare -f "$2" -F "$4" "$1" "$3"
}

title "A base image with a real file system, and three deltas over it, made by qemu-img"
if [ -n "$given" ]; then
    format=$(qemu-img info -U "$given" | sed -n 's/^file format: //p')
    qemu-img convert -U -f "$format" -O raw "$given" disk.raw
else
    mkdir files
    cp "$OLDPWD"/*.md files/
    head -c 8M /dev/urandom >files/noise
    truncate -s 128M disk.raw
    run mkfs.ext4 -q -d files disk.raw
fi
run qemu-img convert -f raw -O qcow2 disk.raw base.qcow2
parent=base.qcow2
n=0
for day in monday tuesday wednesday; do
    n=$((n + 1))
    run qemu-img create -q -f qcow2 -b $parent -F qcow2 $day.qcow2
    parent=$day.qcow2
    if [ -n "$given" ]; then
        run qemu-io -f qcow2 -c "write -q -P $n $((n * 16))k 16k" $day.qcow2
        continue
    fi
    # A file is added, and the blocks that this changed go into the delta.
    cp --sparse=always disk.raw before.raw
    head -c ${n}M /dev/urandom >$day
    run debugfs -w -R "write $day $day" disk.raw 2>/dev/null
    changed=$(cmp -l before.raw disk.raw | awk 'BEGIN { last = -1 } { n = int(($1 - 1) / 65536); if (n != last) print n; last = n }' || true)
    writes=()
    mkdir -p blocks
    for block in $changed; do
        dd if=disk.raw of=blocks/$block bs=64k skip="$block" count=1 status=none
        writes+=(-c "write -q -s blocks/$block $((block * 64))k 64k")
    done
    qemu-io -f qcow2 "${writes[@]}" $day.qcow2
done
rm -rf disk.raw before.raw blocks
# What a guest reads at the head: every later step is held against it.
qemu-img convert -f qcow2 -O raw wednesday.qcow2 truth.raw

title "What it is: the hierarchy, one image, and which layer owns which bytes"
run dchain tree .
run dchain info wednesday.qcow2
dchain map wednesday.qcow2 >map.txt
run head -8 map.txt

title "Names by content: every layer gets an ID that stands for what it shows"
run dchain id seal --chain wednesday.qcow2
run dchain check --lineage wednesday.qcow2

title "A snapshot: wednesday stands still, thursday is written from now on"
run dchain snapshot wednesday.qcow2 thursday.qcow2
run qemu-io -f qcow2 -c "write -P 6 16k 32k" thursday.qcow2
same truth.raw raw wednesday.qcow2 qcow2

title "Back in time: thursday starts again from wednesday"
run dchain revert --yes thursday.qcow2 wednesday.qcow2
same truth.raw raw thursday.qcow2 qcow2

title "To another folder: the base first, then the chain; what is there is found by content, and linked"
mkdir there
run dchain copy base.qcow2 there
run dchain copy --verify thursday.qcow2 there
same truth.raw raw there/thursday.qcow2 qcow2

title "On a stick: the chain as a stream, which is cut off half-way; the same stream again goes on"
mkdir far
shell 'dchain send thursday.qcow2 >stream'
head -c $(($(stat -c %s stream) / 2)) stream >half
shell 'dchain receive far <half' || true
run dchain receive --state far
shell 'dchain receive far <stream'
same truth.raw raw far/thursday.qcow2 qcow2
rm -r far stream half

title "A bag of files, names and links lost: each layer says what it was made on, and is put back there"
mkdir bag
n=0
for day in base monday tuesday wednesday thursday; do
    n=$((n + 1))
    cp --sparse=always $day.qcow2 bag/$((n * 7 % 5)).img
done
run dchain relink --dry-run bag
run dchain relink bag
run dchain tree bag
same truth.raw raw bag/0.img qcow2

title "Two clones on one disk: the first stops sharing, the second goes"
run dchain snapshot bag/0.img bag/clone.img
run dchain snapshot bag/0.img bag/other.img
run dchain unshare bag/clone.img
same truth.raw raw bag/clone.img qcow2
run dchain rm --yes bag/other.img

title "One pass: the deltas are folded into the oldest layer that is this disk's own"
run dchain consolidate --dry-run there/thursday.qcow2
run dchain consolidate --yes --verify=bytes there/thursday.qcow2
same truth.raw raw there/thursday.qcow2 qcow2

title "In use: a daemon serves the disk, a client writes; under it the disk is frozen, goes to another store, and is folded"
mkdir live
run dchain copy -q thursday.qcow2 live
dchaind --disk vm=live/thursday.qcow2 --nbd unix:nbd.sock --control unix:control.sock --state state >daemon.log &
daemon=$!
trap 'kill $daemon 2>/dev/null || true; rm -rf "$folder"' EXIT
until grep -q ready daemon.log; do sleep 0.1; done
area=$(($(stat -c %s truth.raw) / 1024))
area=$((area > 128 ? area - 64 : 1))
# What the client writes to the disk it writes to a plain file as well: that is what the disk has to show.
cp --sparse=always truth.raw live.raw
while [ ! -e enough ]; do
    writes=()
    for _ in 1 2 3 4 5 6 7 8; do
        writes+=(-c "write -q -P $((RANDOM % 255 + 1)) $((RANDOM % area))k $((RANDOM % 60 + 4))k")
    done
    qemu-io -f raw "${writes[@]}" "nbd+unix:///vm?socket=nbd.sock"
    qemu-io -f raw "${writes[@]}" live.raw
    echo >>written
done &
writer=$!
run dchain snapshot --disk vm=friday.qcow2 --socket control.sock
sleep 1
# To another store: it has the base already, the other layers are brought, the head goes in one pass.
mkdir elsewhere
run dchain copy -q base.qcow2 elsewhere
run dchain migrate --disk vm elsewhere --socket control.sock
run dchain consolidate --yes --disk vm --rate 20M --socket control.sock
touch enough
wait $writer
run dchain disk list --socket control.sock
kill $daemon
wait $daemon
echo "the client wrote $(($(wc -l <written) * 8)) times"
same live.raw raw elsewhere/friday.qcow2 qcow2

title "One image in another shape: how large it would be, then compressed, then raw"
run dchain measure -O qcow2 thursday.qcow2
run dchain convert -c -O qcow2 -o compression_type=zstd thursday.qcow2 small.qcow2
run dchain convert -O raw thursday.qcow2 flat.raw
same truth.raw raw small.qcow2 qcow2
same truth.raw raw flat.raw raw

title "What others do in silence is noticed: a foreign writer changes the base under its children"
run qemu-io -f qcow2 -c "write -P 66 0 64k" base.qcow2
if run dchain map thursday.qcow2; then
    echo "not noticed" >&2
    exit 1
fi

title "In the end: every image that was made is sound, says qemu-img"
for image in small.qcow2 there/*.qcow2; do
    run qemu-img check "$image"
done
if [ -z "$given" ]; then
    run e2fsck -fn flat.raw
fi
