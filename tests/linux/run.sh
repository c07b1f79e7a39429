#!/usr/bin/env bash
# Boots what was made for Xen and not for us, on KVM: Debian's own kernels (that of its current release, and the newest
# of another series that its archive offers), whose user space is tortured for a while and then answers on its console;
# and Debian's GRUB for paravirtual domains, which reaches its prompt and halts.
#
# usage: tests/linux/run.sh [SECONDS [GUEST...]]      default: 100 seconds of torture; guests: current other grub
#
# Exit status: 0 if all passed, or if something that it needs is not there and PARAVANE_REQUIRE does not name `linux`
# (for the kernel of another series, `linux-other`): it then says SKIP and why. 1 if anything failed. What the consoles
# showed is left in target/linux/.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-100}
[ $# = 0 ] || shift
guests=("$@")
[ $# != 0 ] || guests=(current other grub)
# Beside the torture: far more than a start takes on a machine that others use, too.
start_s=300
mem=512M
# KiB of address space for each guest's program.
address_space=4000000
here=tests/linux
target=${CARGO_TARGET_DIR:-target}
work=$target/linux

say() { printf 'linux: %s\n' "$*"; }

# absent REQUIREMENT WHY: what is needed is not there, and this cannot be tested.
absent() {
    local requirement=$1
    shift
    case ",${PARAVANE_REQUIRE:-}," in
        *[,\ ]"$requirement"[,\ ]*)
            say "FAIL: PARAVANE_REQUIRE=$PARAVANE_REQUIRE, but $*"
            exit 1
            ;;
    esac
    printf 'SKIP: %s: %s\n' "$requirement" "$*"
}

# Nothing can be tested.
nothing() {
    absent linux "$@"
    exit 0
}

update_lists() {
    [ "$(id -u)" = 0 ] && apt-get update -qq
}

# Installs cpio where that may be done and it is not there.
tools() {
    command -v cpio >/dev/null && return
    [ "$(id -u)" = 0 ] || nothing 'not installed: cpio (as root it would be)'
    local install=(apt-get install -y -qq --no-install-recommends cpio)
    DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null ||
        { update_lists && DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null; } ||
        nothing 'cannot install cpio'
}

# The package of the kernel that Debian's current release uses.
current_package() {
    apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

# The newest kernel of another series than that of package $1, with the same configuration otherwise.
other_package() {
    local series
    series=$(sed 's/^linux-image-\([0-9]*\.[0-9]*\)\..*/\1/' <<<"$1")
    apt-cache pkgnames linux-image- 2>/dev/null |
        grep -E '^linux-image-[0-9]+\.[0-9]+\.[0-9]+(-[0-9]+)?(\+(deb|bpo)[0-9.]*)?(-[0-9]+)?-amd64$' |
        grep -v -F "linux-image-$series." | sort -V | tail -n 1
}

# fetch PACKAGE FILE...: unpacks of the package what is needed into $work/PACKAGE, once. Nothing is installed.
fetch() {
    local package=$1 into=$work/$1
    shift
    [ ! -e "$into/complete" ] || return 0
    say "fetching $package"
    rm -rf "$into"
    mkdir -p "$into"
    # apt warns that its own user cannot write here, which it need not.
    (cd "$into" && apt-get download -qq "$package" 2>/dev/null) ||
        { update_lists && (cd "$into" && apt-get download -qq "$package" 2>/dev/null); } || return 1
    dpkg-deb --fsys-tarfile "$into"/*.deb | tar -x -C "$into" --wildcards "$@"
    rm "$into"/*.deb
    touch "$into/complete"
}

# The guests' file system: busybox, the torture program, and `init`.
file_system() {
    local root=$work/root triple=x86_64-unknown-linux-gnu
    # Linked statically, so that it needs no library of this machine's in the guest.
    RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --quiet -p paravane-torture \
        --target "$triple" --target-dir "$work/torture"
    rm -rf "$root"
    mkdir -p "$root"/{bin,dev,proc,sys,tmp}
    install -m 755 "$here/init" "$root/init"
    install -m 755 "$work/busybox-static/bin/busybox" "$root/bin/busybox"
    install -m 755 "$work/torture/$triple/release/paravane-torture" "$root/bin/torture"
    strip "$root/bin/torture"
    (cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet) >"$work/initramfs"
    rm -rf "$root"
}

# start NAME LIMIT ARGUMENT...: runs a guest. Its console is `from` and `to`, its program `pid`.
start() {
    local name=$1 limit=$2
    shift 2
    log=$work/$name.console
    : >"$log"
    coproc guest {
        ulimit -v "$address_space"
        exec "$target/release/paravane" run --engine kvm --timeout "$limit" "$@" 2>&1
    }
    pid=$guest_PID
    exec {from}<&"${guest[0]}" {to}>&"${guest[1]}"
    # Ended early, this shell leaves no guest behind.
    trap 'kill "$pid" 2>/dev/null || true' EXIT
}

# finish NAME: what is left of its console, and its exit status.
finish() {
    cat <&"$from" >>"$log"
    status=0
    wait "$pid" || status=$?
    trap - EXIT
}

# fail NAME WHY: with the end of the console.
fail() {
    say "$1: FAIL: $2"
    say "$1: from $work/$1.console:"
    tr -d '\r' <"$work/$1.console" | tail -n 40
    return 1
}

# A kernel of Debian's, in package $2.
linux() {
    local name=$1 kernel=("$work/$2"/boot/vmlinuz-*) line one=$((RANDOM % 1000)) two=$((RANDOM % 1000))
    local answer= verdict= tortured=
    start "$name" $((seconds + start_s)) --mem "$mem" --initrd "$work/initramfs" \
        --cmdline "console=hvc0 loglevel=6 paravane.seconds=$seconds" "${kernel[0]}"
    while IFS= read -r line <&"$from"; do
        printf '%s\n' "$line" >>"$log"
        line=${line%$'\r'}
        case $line in
            'guest: ASK') printf '%s %s\n' "$one" "$two" >&"$to" ;;
            'guest: ANSWER '*) answer=${line#guest: ANSWER } ;;
            'guest: VERDICT '*) verdict=${line#guest: VERDICT } ;;
            'guest: torture: pass: '*) tortured=yes && say "$name: ${line#guest: }" ;;
            'guest: '*) say "$name: ${line#guest: }" ;;
        esac
    done
    finish "$name"
    [ "$verdict" = pass ] || fail "$name" "${verdict:-no verdict}, exit status $status" || return
    [ -n "$tortured" ] || fail "$name" 'the torture program did not say that it passed' || return
    [ "$answer" = $((one * two)) ] || fail "$name" "it answered '$answer' to '$one $two'" || return
    [ "$status" = 0 ] || fail "$name" "exit status $status after powering off" || return
    say "$name: ${2#linux-image-}: passed"
}

# Debian's GRUB for paravirtual domains.
grub() {
    local name=$1 part prompt=
    start "$name" "$start_s" --mem 128M "$work/grub-xen-host/usr/lib/grub-xen/grub-x86_64-xen.bin"
    while IFS= read -r -d '>' part <&"$from"; do
        printf '%s>' "$part" >>"$log"
        if [ -z "$prompt" ] && [ "${part%grub}" != "$part" ]; then
            prompt=yes
            printf 'halt\n' >&"$to"
        fi
    done
    printf '%s' "$part" >>"$log"
    finish "$name"
    [ -n "$prompt" ] || fail "$name" "no prompt, exit status $status" || return
    [ "$status" = 0 ] || fail "$name" "exit status $status after halting" || return
    say "$name: passed: prompt and halt"
}

[ "$(uname -m)" = x86_64 ] || nothing "this is a $(uname -m), not an x86-64"
[ -r /dev/kvm ] && [ -w /dev/kvm ] || nothing 'there is no /dev/kvm that may be used'
command -v apt-get >/dev/null || nothing "there is no apt-get to fetch Debian's kernels with"
tools
mkdir -p "$work"
current=$(current_package)
if [ -z "$current" ]; then
    update_lists || true
    current=$(current_package)
fi
[ -n "$current" ] || nothing "apt knows no linux-image-amd64 (Debian's); as root its lists would be updated"
other=$(other_package "$current")

declare -A package=([current]=$current [other]=$other [grub]=grub-xen-host)
declare -A file=([current]='./boot/vmlinuz-*' [other]='./boot/vmlinuz-*' [grub]='*/grub-x86_64-xen.bin')
present=()
for guest in "${guests[@]}"; do
    if [ -z "${package[$guest]:-}" ]; then
        absent linux-other "apt offers no kernel of another series than $current"
    elif fetch "${package[$guest]}" "${file[$guest]}"; then
        present+=("$guest")
    else
        absent linux "cannot fetch ${package[$guest]}"
    fi
done
fetch busybox-static './bin/busybox' || nothing 'cannot fetch busybox-static'
cargo build --release --locked --quiet -p paravane
file_system

# Ended early, it leaves no guest behind.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
began=$SECONDS
declare -A running
for guest in "${present[@]}"; do
    case $guest in
        grub) (grub grub) & ;;
        *) (linux "$guest" "${package[$guest]}") & ;;
    esac
    running[$guest]=$!
done
failed=
for guest in "${present[@]}"; do
    wait "${running[$guest]}" || failed="$failed $guest"
done
if [ -n "$failed" ]; then
    say "FAIL:$failed"
    exit 1
fi
say "passed: ${present[*]:-nothing} in $((SECONDS - began)) s"
