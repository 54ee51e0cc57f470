#!/usr/bin/env bash
# Makes the golden images and their birth certificates (births.tsv) with qemu's tools. Run it again only to add
# an image: the files in the repository are the ones that the tests trust, not what a later qemu would make.
set -euo pipefail
cd "$(dirname "$0")"
tool=$(qemu-img --version | sed -n '1s/ (.*//p')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# birth FILE PARAGRAPH: one line in births.tsv: file, tool, how, BLAKE3 of the file, view's bytes, BLAKE3 of the view.
birth() {
    local file=$1 how=$2 format=${3:-qcow2}
    qemu-img convert -q -f "$format" -O raw "$file" "$scratch/view"
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$file" "$tool" "$how" "$(b3sum --no-names "$file")" \
        "$(stat -c %s "$scratch/view")" "$(b3sum --no-names "$scratch/view")" >>births.tsv
}

# make NAME OPTIONS SIZE COMMAND...: creates NAME and runs qemu-io commands on it.
make() {
    local name=$1 options=$2 size=$3 args=() command how
    shift 3
    rm -f "$name"
    how="qemu-img create -f qcow2 -o $options $name $size"
    # shellcheck disable=SC2086
    qemu-img create -q -f qcow2 -o "$options" "$name" $size >/dev/null
    for command in "$@"; do
        args+=(-c "$command")
        how+="; qemu-io: $command"
    done
    [ ${#args[@]} = 0 ] || qemu-io -f qcow2 "${args[@]}" "$name" >/dev/null
    births[${#births[@]}]="$name|$how"
}

raw_images() {
    cd raw
    : >births.tsv
    rm -f head.raw odd.raw qcow2-inside.raw
    qemu-img create -q -f raw head.raw 64k
    qemu-io -f raw -c "write -P 0x11 0 512" -c "write -P 0x22 60k 4k" head.raw >/dev/null
    birth head.raw "qemu-img create -f raw head.raw 64k; qemu-io: write -P 0x11 0 512; write -P 0x22 60k 4k" raw
    head -c 1000 head.raw >odd.raw
    birth odd.raw "head -c 1000 head.raw: not a multiple of 512" raw
    head -c 1024 ../qcow2/v3-4k.qcow2 >qcow2-inside.raw
    birth qcow2-inside.raw "head -c 1024 of a qcow2 image: a guest wrote a header into its raw disk" raw
    cd ..
}

qcow2_images() {
    cd qcow2
    births=()
    : >births.tsv
    rm -f ./*.qcow2 ./*.data
    make v2-4k.qcow2 compat=0.10,cluster_size=4k 1M "write -P 1 0 12k" "write -P 2 500k 1k"
    make v3-4k.qcow2 cluster_size=4k 1M "write -P 3 0 4k" "write -z 8k 8k" "write -P 4 1020k 4k"
    make v3-512.qcow2 cluster_size=512,refcount_bits=1 300k "write -P 5 1k 3k" "write -P 6 299k 1k"
    make v3-64k.qcow2 cluster_size=64k,refcount_bits=64 8M "write -P 7 100k 100k"
    make refcount-2.qcow2 cluster_size=4k,refcount_bits=2 2M "write -P 8 1M 64k"
    make subclusters.qcow2 cluster_size=16k,extended_l2=on 1M "write -P 9 1k 5k" "write -z 20k 2k" "write -P 10 64k 16k"
    make zeros.qcow2 cluster_size=4k 1M "write -P 11 0 64k" "write -z 4k 8k" "write -zu 32k 8k" "write -z 512k 16k"
    make zlib.qcow2 cluster_size=4k 1M "write -c -P 12 0 16k" "write -P 13 16k 4k" "write -c -P 14 100k 4k"
    make zstd.qcow2 cluster_size=4k,compression_type=zstd 1M "write -c -P 15 0 16k" "write -P 16 16k 4k"
    make lazy.qcow2 cluster_size=4k,lazy_refcounts=on 1M "write -P 17 0 8k"
    make snapshot.qcow2 cluster_size=4k 1M "write -P 18 0 32k"
    qemu-img snapshot -c before snapshot.qcow2
    qemu-io -f qcow2 -c "write -P 19 8k 8k" snapshot.qcow2 >/dev/null
    births[-1]+="; qemu-img snapshot -c before; qemu-io: write -P 19 8k 8k"
    make bitmap.qcow2 cluster_size=4k 1M
    qemu-img bitmap --add -g 4k bitmap.qcow2 changes
    qemu-io -f qcow2 -c "write -P 20 40k 8k" bitmap.qcow2 >/dev/null
    births[-1]+="; qemu-img bitmap --add -g 4k bitmap.qcow2 changes; qemu-io: write -P 20 40k 8k"
    make data-file.qcow2 cluster_size=4k,data_file=data-file.data 256k "write -P 21 16k 16k"
    make data-file-raw.qcow2 cluster_size=4k,data_file=data-file-raw.data,data_file_raw=on 256k "write -P 22 16k 16k"
    make parent.qcow2 cluster_size=4k 512k "write -P 23 0 512k"
    make child.qcow2 cluster_size=4k,backing_file=parent.qcow2,backing_fmt=qcow2 1M "write -P 24 4k 4k" "write -z 12k 4k"
    make on-raw.qcow2 cluster_size=4k,backing_file=../raw/head.raw,backing_fmt=raw 128k "write -P 25 1k 1k"
    for line in "${births[@]}"; do
        birth "${line%%|*}" "${line#*|}"
    done
    for part in *.data; do
        birth "$part" "the external data file of ${part%.data}.qcow2" raw
    done
    cd ..
}

# Small blocks: a file of a few MiB, nearly all of it holes.
vhdx_images() {
    cd vhdx
    : >births.tsv
    rm -f ./*.vhdx
    local options commands
    for name in dynamic fixed; do
        options=subformat=$name,block_size=1M
        commands=(-c "write -P 26 100k 3k" -c "write -P 27 1023k 2k")
        qemu-img create -q -f vhdx -o "$options" "$name.vhdx" 2560k >/dev/null
        qemu-io -f vhdx "${commands[@]}" "$name.vhdx" >/dev/null
        birth "$name.vhdx" "qemu-img create -f vhdx -o $options $name.vhdx 2560k; qemu-io: write -P 26 100k 3k; qemu-io: write -P 27 1023k 2k" vhdx
    done
    cd ..
}

vpc_images() {
    cd vpc
    : >births.tsv
    rm -f ./*.vhd
    qemu-img create -q -f vpc -o subformat=fixed,force_size=on fixed.vhd 64k
    qemu-io -f vpc -c "write -P 0x31 1k 2k" -c "write -P 0x32 63k 1k" fixed.vhd >/dev/null
    birth fixed.vhd "qemu-img create -f vpc -o subformat=fixed,force_size=on fixed.vhd 64k; qemu-io: write -P 0x31 1k 2k; write -P 0x32 63k 1k" vpc
    qemu-img create -q -f vpc dynamic.vhd 3M
    qemu-io -f vpc -c "write -P 0x33 2500k 3k" dynamic.vhd >/dev/null
    birth dynamic.vhd "qemu-img create -f vpc dynamic.vhd 3M (the geometry's size); qemu-io: write -P 0x33 2500k 3k" vpc
    cd ..
}

vmdk_images() {
    cd vmdk
    : >births.tsv
    rm -f ./*.vmdk
    local name options
    for name in sparse zeroed; do
        options=subformat=monolithicSparse
        [ $name = sparse ] || options+=,zeroed_grain=on
        qemu-img create -q -f vmdk -o $options $name.vmdk 1M
        qemu-io -f vmdk -c "write -P 0x41 100k 3k" -c "write -z 512k 64k" $name.vmdk >/dev/null
        birth $name.vmdk "qemu-img create -f vmdk -o $options $name.vmdk 1M; qemu-io: write -P 0x41 100k 3k; write -z 512k 64k" vmdk
    done
    qemu-img convert -q -f vmdk -O vmdk -o subformat=streamOptimized sparse.vmdk stream.vmdk
    birth stream.vmdk "qemu-img convert -f vmdk -O vmdk -o subformat=streamOptimized sparse.vmdk stream.vmdk" vmdk
    cd ..
}

mkdir -p raw qcow2 vhdx vpc vmdk
vhdx_images
vpc_images
vmdk_images
[ -e raw/head.raw ] || qemu-img create -q -f raw raw/head.raw 64k
qcow2_images
raw_images
cd qcow2
sed -i '/^on-raw/d' births.tsv
birth on-raw.qcow2 "qemu-img create -f qcow2 -o cluster_size=4k,backing_file=../raw/head.raw,backing_fmt=raw on-raw.qcow2 128k; qemu-io: write -P 25 1k 1k"
