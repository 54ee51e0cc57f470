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
"

say() { printf '\n== %s\n' "$*"; }

missing() {
    while read -r command package; do
        [ -z "$command" ] || command -v "$command" >/dev/null || echo "$package"
    done <<<"$needs" | sort -u
}

install_tools() {
    export PATH="$PATH:/usr/sbin:/sbin"
    local packages as_root=
    packages=$(missing)
    if [ -n "$packages" ]; then
        say "installing" $packages
        [ "$(id -u)" = 0 ] || as_root=sudo
        $as_root apt-get -qq update
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive $as_root apt-get -qq install -y --no-install-recommends $packages </dev/null
    fi
    packages=$(missing)
    if [ -n "$packages" ]; then
        echo "test.sh: still missing after the installation: $packages" >&2
        exit 1
    fi
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
