# shellcheck shell=bash
# What the scripts share: messages, installing what is missing, waiting with a limit. Sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/target/venv

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { warn "$*"; exit 1; }

# as_root CMD...: runs CMD as root, by sudo where we are not root.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root for: $* (run as root, or install sudo)"
    fi
}

# need_deb PROGRAM:PACKAGE...: installs the Debian packages whose program is not there.
need_deb() {
    local pair missing=()
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (no apt-get on this machine)"
    say "installing ${missing[*]}"
    apt_install "${missing[@]}"
}

# apt_install PACKAGE...: quietly, refreshing the lists only where the first try fails.
apt_install() {
    local log
    log=$(mktemp)
    if apt_get_install "$@" >"$log" 2>&1 || { as_root apt-get update >>"$log" 2>&1 && apt_get_install "$@" >>"$log" 2>&1; }; then
        rm -f "$log"
    else
        cat "$log" >&2
        rm -f "$log"
        die "could not install: $*"
    fi
}

apt_get_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null
}

# need_rust: the toolchain is the one thing that we do not install on our own.
need_rust() {
    command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || die "cargo is not installed. Install Rust 1.95 or newer (https://rustup.rs) and run this again."
    local have want
    have=$(cargo --version | cut -d' ' -f2 | cut -d- -f1)
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -1)" = "$want" ] ||
        die "Rust $want or newer is needed, this is $have. Run: rustup update stable"
}

# need_cargo_tool NAME: a cargo subcommand, built from the registry where it is missing.
need_cargo_tool() {
    command -v "$1" >/dev/null || [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/$1" ] || PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    command -v "$1" >/dev/null && return 0
    say "installing $1 (a few minutes, once)"
    cargo install --locked --quiet "$1" || die "could not install $1"
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
}

# need_python PACKAGE...: PyPI packages in a virtual environment below target/.
need_python() {
    local python
    if [ ! -x "$VENV/bin/pip" ]; then
        need_deb python3:python3
        python=$(command -v python3)
        rm -rf "$VENV"
        mkdir -p "${VENV%/*}"
        "$python" -m venv "$VENV" >/dev/null 2>&1 || {
            apt_install python3-venv
            rm -rf "$VENV"
            "$python" -m venv "$VENV" || /usr/bin/python3 -m venv "$VENV" || die "could not make $VENV"
        }
    fi
    [ "$(cat "$VENV/.have" 2>/dev/null)" = "$*" ] && return 0
    "$VENV/bin/pip" install --quiet --disable-pip-version-check "$@" </dev/null || die "could not install $* from PyPI"
    printf '%s' "$*" >"$VENV/.have"
}

# wait_for SECONDS CMD...: runs CMD until it succeeds; fails when the time is up.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# is_mounted DIR: by the kernel's table, so that a dead mount counts and nothing hangs.
is_mounted() {
    local path
    path=$(realpath -ms -- "$1")
    awk -v p="$path" '{ gsub(/\\040/, " ", $5) } $5 == p { found = 1 } END { exit !found }' /proc/self/mountinfo
}

# mount_answers DIR: its filesystem answers now; attributes alone may come from the kernel's cache of a dead mount.
mount_answers() { is_mounted "$1" && timeout 10 stat --file-system -- "$1" >/dev/null 2>&1; }
