#!/usr/bin/env bash
# Makes sure that programs are there: `require.sh "why" PROGRAM=PACKAGE...`, or sourced for `require`.
#
# As root it installs what is missing with apt and says so in one line. Otherwise it says exactly what
# to install and returns 1, so that the caller decides whether that is a failure or a skip.

say() { printf '\n== %s\n' "$*"; }

# A Debian machine may carry QEMU's tools from backports; the system emulator of the plain release
# would then remove them. Prints the apt options that take QEMU from where the tools came from,
# with a private copy of the machine's sources: nothing of the machine's own set-up changes.
qemu_apt_options() {
    local installed suite mirror parts
    installed=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null || true)
    [[ $installed == *~bpo* ]] || return 0
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")-backports
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')
    parts=$(mktemp -d)
    cp /etc/apt/sources.list.d/* "$parts"/ 2>/dev/null || true
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
        >"$parts/forerun-backports.list"
    echo "-o Dir::Etc::sourceparts=$parts -o APT::Get::List-Cleanup=0 -t $suite"
}

# require "why" PROGRAM=PACKAGE...
require() {
    local why=$1 pair packages=() options=""
    shift
    for pair in "$@"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "missing for $why: install ${packages[*]}  (Debian: sudo apt-get install ${packages[*]})" >&2
        return 1
    fi
    echo "installing ${packages[*]} for $why"
    case " ${packages[*]} " in *" qemu-system-x86 "*) options=$(qemu_apt_options) ;; esac
    local log
    log=$(mktemp)
    # shellcheck disable=SC2086  # the options are words
    if ! { apt-get -q update $options &&
        DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $options \
            "${packages[@]}"; } </dev/null >"$log" 2>&1; then
        echo "apt-get could not install ${packages[*]}:" >&2
        tail -n 15 "$log" >&2
        return 1
    fi
}

# Rust as new as Cargo.toml asks for. Debian 13's own cargo is too old for it and its rustup brings a newer
# one; Debian 12 has no rustup, so there it says where rustup is.
require_rust() {
    local root wanted found
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
    rust_found() {
        found=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
        [ -n "$found" ] && [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ]
    }
    rust_found && return 0
    if [ "$(id -u)" = 0 ] && ! command -v rustup >/dev/null && command -v apt-get >/dev/null; then
        apt-get -q update </dev/null >/dev/null 2>&1 || true
        if apt-cache policy rustup | grep -q 'Candidate: [0-9]'; then
            require "Rust $wanted" rustup=rustup >&2 || return 1
        fi
    fi
    if [ "$(id -u)" = 0 ] && command -v rustup >/dev/null; then
        echo "installing Rust's stable release with rustup" >&2
        rustup toolchain install stable --profile default >&2 && rustup default stable >&2
    fi
    rust_found && return 0
    echo "Forerun is built with Rust $wanted or newer${found:+; cargo here is $found}." >&2
    echo "Install it with rustup: apt-get install rustup && rustup default stable on Debian 13," >&2
    echo "https://rustup.rs elsewhere. Then run this again." >&2
    return 1
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    require "$@"
fi
