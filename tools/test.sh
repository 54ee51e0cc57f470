#!/usr/bin/env bash
# Installs what the tests need and runs all of them. `--install` stops after the first half.
set -euo pipefail
cd "$(dirname "$0")/.."

# Command and the Debian package that brings it.
needs="
qemu-img qemu-utils
qemu-io qemu-utils
mkfs.ext4 e2fsprogs
mkfs.xfs xfsprogs
qemu-nbd qemu-utils
zstd zstd
nbdinfo libnbd-bin
nbdcopy libnbd-bin
fio fio
qemu-system-x86_64 qemu-system-x86
openssl openssl
ssh openssh-client
/usr/sbin/sshd openssh-server
rsync rsync
systemd-socket-activate systemd
chromium chromium
chromedriver chromium-driver
"
# Debian packages that are unpacked here and not installed: the kernel and the first program of the tests' guest.
unpacked="linux-image-cloud-amd64 busybox-static"
guest=target/guest

say() { printf '\n== %s\n' "$*"; }

missing() {
    while read -r command package; do
        [ -z "$command" ] || command -v "$command" >/dev/null || echo "$package"
    done <<<"$needs" | sort -u
    /usr/bin/python3 -c "import pyvhdi" 2>/dev/null || echo python3-libvhdi
}

# qemu of Debian 12 is too old, and programs of two versions of it do not go together: there all of it comes from
# its backports, by a list of sources that only these calls see.
install_packages() {
    local as_root=$1 package qemu=() others=() sources
    shift
    for package in "$@"; do
        case "$package" in qemu-*) qemu+=("$package") ;; *) others+=("$package") ;; esac
    done
    sources=$(mktemp)
    local apt=($as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ]; then
        echo "deb http://deb.debian.org/debian bookworm-backports main" >"$sources"
        apt+=(-o "Dir::Etc::sourcelist=$sources")
        [ ${#qemu[@]} = 0 ] || qemu=(-t bookworm-backports "${qemu[@]}")
    fi
    chmod 644 "$sources"
    "${apt[@]}" update
    [ ${#others[@]} = 0 ] || "${apt[@]}" install -y --no-install-recommends "${others[@]}" </dev/null
    [ ${#qemu[@]} = 0 ] || "${apt[@]}" install -y --no-install-recommends "${qemu[@]}" </dev/null
    rm "$sources"
}

# Unpacks kernel and busybox; `done` says that both are whole.
unpack_guest() {
    local as_root=$1 package
    say "unpacking" $unpacked
    rm -rf "$guest" && mkdir -p "$guest/packages"
    $as_root apt-get -qq update
    for package in $unpacked; do
        # The kernel's package of this name holds nothing: it depends on the one of the newest version.
        case "$package" in linux-*)
            package=$(apt-cache depends "$package" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1) ;;
        esac
        (cd "$guest/packages" && apt-get -qq download "$package")
    done
    for package in "$guest"/packages/*.deb; do dpkg -x "$package" "$guest"; done
    rm -r "$guest/packages" && touch "$guest/done"
}

install_tools() {
    export PATH="$PATH:/usr/sbin:/sbin"
    local packages as_root=
    packages=$(missing)
    [ "$(id -u)" = 0 ] || as_root=sudo
    if [ -n "$packages" ]; then
        say "installing" $packages
        install_packages "$as_root" $packages
    fi
    packages=$(missing)
    if [ -n "$packages" ]; then
        echo "test.sh: still missing after the installation: $packages" >&2
        exit 1
    fi
    [ -e "$guest/done" ] || unpack_guest "$as_root"
    for component in rustfmt clippy; do
        cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
    done
    if ! cargo nextest --version >/dev/null 2>&1; then
        say "installing cargo-nextest"
        cargo install --locked --quiet cargo-nextest
    fi
}

install_tools
[ "${1:-}" != --install ] || exit 0

say "format";        cargo fmt --all --check
say "lints";         cargo clippy --quiet --workspace --all-targets -- -D warnings
say "documentation"; RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps
say "tests";         cargo nextest run --workspace --no-fail-fast --status-level fail --final-status-level slow
say "examples in the documentation"; cargo test --quiet --workspace --doc
if cargo deny --version >/dev/null 2>&1; then
    say "licences";  cargo deny --offline check licenses
else
    echo "cargo-deny is not here: licences are not checked (deny.toml says which are allowed)"
fi
say "all passed"
