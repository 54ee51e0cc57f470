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
# Says that qemu-img sees the same bytes in two images, or stops.
same() {
    printf 'qemu-img agrees: '
    qemu-img compare -f "$2" -F "$4" "$1" "$3"
}

title "A base image with a real file system, and deltas over it, made by qemu-img"
if [ -n "$given" ]; then
    format=$(qemu-img info -U "$given" | sed -n 's/^file format: //p')
    qemu-img convert -U -f "$format" -O qcow2 "$given" base.qcow2
else
    mkdir files
    cp -r /usr/share/common-licenses /etc/hostname files/ 2>/dev/null || true
    head -c 8M /dev/urandom >files/noise
    truncate -s 256M base.raw
    run mkfs.ext4 -q -d files base.raw
    run qemu-img convert -f raw -O qcow2 base.raw base.qcow2
fi
parent=base.qcow2
for layer in monday tuesday wednesday; do
    run qemu-img create -q -f qcow2 -b $parent -F qcow2 $layer.qcow2
    case $layer in
        monday) writes=("write -P 1 40M 3M" "write -P 2 100M 64k") ;;
        tuesday) writes=("write -P 3 41M 1M" "write -z 100M 32k") ;;
        wednesday) writes=("write -P 4 60M 4k" "write -P 5 200M 2M") ;;
    esac
    args=()
    for write in "${writes[@]}"; do args+=(-c "$write"); done
    qemu-io -f qcow2 "${args[@]}" $layer.qcow2 >/dev/null
    parent=$layer.qcow2
done
# What a guest reads at the head: every later step is held against it.
qemu-img convert -f qcow2 -O raw wednesday.qcow2 truth.raw

title "All results agree with qemu-img"
same truth.raw raw wednesday.qcow2 qcow2
