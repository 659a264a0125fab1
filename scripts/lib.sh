# Shared by the scripts beside it; sourced, not run.
# shellcheck shell=bash
#
# What is here touches the machine in one way only: `install_debian_packages`, which names what it adds before it adds it.
# Namespaces, devices and their processes are lab.py's.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PEERS=${RINGTUN_PEERS:-/opt/peers}
CACHE=${RINGTUN_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ringtun}
# Debian keeps ip, nft and ethtool where a plain user's PATH does not look; rustup installs here.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
export PATH

say() { printf '\n== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

need_root() {
    is_root || die "$1 needs root (network namespaces and TUN devices). Try: sudo -E $0"
}

need_tun() {
    [ -c /dev/net/tun ] || die "there is no /dev/net/tun. Load the module (modprobe tun), or give the container the device."
}

# Says on one line why namespaces or TUN devices cannot be used here; silent and 1 when they can.
why_no_namespaces() {
    is_root || {
        echo "not running as root"
        return 0
    }
    [ -c /dev/net/tun ] || {
        echo "there is no /dev/net/tun"
        return 0
    }
    command -v ip >/dev/null || {
        echo "iproute2 is not installed"
        return 0
    }
    local probe="rt-$$-probe"
    if ! ip netns add "$probe" 2>/dev/null; then
        echo "network namespaces cannot be created"
        return 0
    fi
    ip netns del "$probe"
    return 1
}

# with_progress WHAT COMMAND...: runs the command with its output in a log, and says every few seconds how long it has taken and what it
# said last: on one line of a terminal, on a line each elsewhere. Where the command fails its output is shown, and the script ends.
with_progress() {
    local what=$1 log ticker code=0
    shift
    log=$(mktemp)
    progress_of "$what" "$log" $$ &
    ticker=$!
    "$@" </dev/null >"$log" 2>&1 || code=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    [ ! -t 1 ] || printf '\r\033[K'
    [ "$code" -eq 0 ] || cat "$log" >&2
    rm -f "$log"
    [ "$code" -eq 0 ] || die "$what failed ($code); its output stands above"
}

# progress_of WHAT LOG PID: what with_progress shows, for as long as the process lives.
progress_of() {
    local began=$SECONDS every=10 before='   ' after='\n' said
    [ ! -t 1 ] || every=1 before='\r\033[K   ' after=''
    # Its sleep must hold nobody's pipe open when it is ended meanwhile.
    while sleep "$every" >/dev/null 2>&1 && kill -0 "$3" 2>/dev/null; do
        said=$(tr '\r' '\n' <"$2" 2>/dev/null | grep -v '^ *$' | tail -n 1 | sed 's/^ *//' | cut -c 1-70) || true
        # shellcheck disable=SC2059
        printf "$before%s: %d s${said:+, %s}$after" "$1" $((SECONDS - began)) ${said:+"$said"}
    done
}

# install_debian_packages WHAT=PACKAGE...: WHAT is a command, or a file when it begins with a slash. Installs the packages
# of those that are missing, and no others.
install_debian_packages() {
    local entry what package missing=()
    for entry in "$@"; do
        what=${entry%%=*} package=${entry#*=}
        if [[ $what == /* ]]; then
            [ -e "$what" ] && continue
        else
            command -v "$what" >/dev/null && continue
        fi
        missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        note "Debian packages: all present"
        return 0
    fi
    command -v apt-get >/dev/null || die "this is not Debian; install the counterparts of: ${missing[*]}"
    is_root || die "missing Debian packages. As root: apt-get install ${missing[*]}"
    note "Debian packages to install: ${missing[*]}"
    with_progress "apt-get update" apt-get -q update
    # What that comes to, with all they depend on: "Need to get 545 MB of archives." and the like.
    apt-get -q install --assume-no --no-install-recommends "${missing[@]}" 2>/dev/null |
        sed -n 's/^\(Need to get .*\)/   \1/p; s/^\(After this operation.*\)/   \1/p' || true
    with_progress "apt-get install" env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}"
}

# Packages to build, to count instructions, to make a lab of namespaces, and to test.
BUILD_PACKAGES=(gcc=gcc /usr/include/stdio.h=libc6-dev)
COUNT_PACKAGES=(valgrind=valgrind)
LAB_PACKAGES=(ip=iproute2 wg=wireguard-tools iperf3=iperf3 ping=iputils-ping ethtool=ethtool python3=python3 setpriv=util-linux)
TEST_PACKAGES=(nft=nftables iptables-restore=iptables systemd-analyze=systemd qemu-system-x86_64=qemu-system-x86 busybox=busybox-static cpio=cpio modinfo=kmod prometheus=prometheus chromium=chromium tmux=tmux bpftrace=bpftrace)

# Ends here where there is no Rust that can build this. To be called before anything is installed or built.
need_rust() {
    local wanted have
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    if ! command -v cargo >/dev/null; then
        die "cargo is missing, and Debian 12's own package (1.63) is too old: Rust $wanted or newer is needed. Install it with
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default
or unpack a toolchain of https://forge.rust-lang.org/infra/other-installation-methods.html, then run this again."
    fi
    have=$(cargo --version | awk '{print $2}')
    if [ "$(printf '%s\n%s\n' "$wanted" "${have%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
        die "cargo is $have, but Rust $wanted or newer is needed (Debian 12's own package is too old). Try: rustup update stable"
    fi
    note "cargo $have"
}

# The platform that the compiler builds for.
rust_host() {
    rustc -vV | sed -n 's/^host: //p'
}

# llvm_tool NAME: the path of a tool of the LLVM that the compiler is built from. Nothing where there is none.
llvm_tool() {
    local version path
    path=$(rustc --print sysroot)/lib/rustlib/$(rust_host)/bin/$1
    version=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    [ -x "$path" ] || path=$(command -v "$1-$version") || return 0
    echo "$path"
}

# Installs those tools beside the compiler where they are missing, if rustup is there to do it.
need_llvm() {
    if [ -z "$(llvm_tool llvm-cov)" ] && command -v rustup >/dev/null; then
        note "rustup component add llvm-tools"
        rustup component add llvm-tools || true
    fi
}

# What makes the Debian package; one version, so that it makes the same.
CARGO_DEB=3.6.3

# Installs cargo-deb, where it is not there in this version, beside the other implementations or, for whoever may not write there, into
# cargo's own directory, and puts it first in PATH.
need_cargo_deb() {
    local root=$PEERS
    PATH=$PEERS/bin:$PATH
    [ "$(cargo-deb --version 2>/dev/null)" != "cargo-deb $CARGO_DEB" ] || return 0
    mkdir -p "$root/bin" 2>/dev/null && [ -w "$root/bin" ] || root=${CARGO_HOME:-$HOME/.cargo}
    note "cargo install cargo-deb --version $CARGO_DEB"
    cargo install --locked --quiet cargo-deb --version $CARGO_DEB --root "$root"
}

# Builds the release binary and leaves its path in RINGTUN_BIN; a path given from outside is taken as it is.
build_ringtun() {
    if [ -n "${RINGTUN_BIN:-}" ]; then
        [ -x "$RINGTUN_BIN" ] || die "RINGTUN_BIN=$RINGTUN_BIN is not a program"
        note "RINGTUN_BIN=$RINGTUN_BIN: not building"
    else
        need_rust
        install_debian_packages "${BUILD_PACKAGES[@]}"
        note "cargo build --release"
        (cd "$ROOT" && cargo build --release --locked --bin ringtun)
        RINGTUN_BIN=${CARGO_TARGET_DIR:-$ROOT/target}/release/ringtun
    fi
    export RINGTUN_BIN
}

# run_python FILE ARGUMENT...: becomes the script, once the lab's packages are there; asked for help, Python is all it needs.
run_python() {
    local file=$1 packages=("${LAB_PACKAGES[@]}")
    shift
    case " $* " in *" --help "* | *" -h "*) packages=(python3=python3) ;; esac
    # Said on standard error, as what the script prints may be read by a program.
    install_debian_packages "${packages[@]}" >&2
    exec python3 "$file" "$@"
}
