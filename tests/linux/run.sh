#!/usr/bin/env bash
# Boots guests that others built for Xen, on KVM: two of Debian's own kernels (that of its current release, and the
# newest of another series in its archive) and Debian's GRUB for paravirtual domains. Each kernel runs a torture program
# for a while; then its user space answers a question on the console. The current one does so with two and with four
# vCPUs as well. GRUB reaches its prompt and halts.
#
# usage: tests/linux/run.sh [SECONDS [GUEST...]]      default: 100 seconds of torture;
#                                                     guests: current current-2 current-4 other grub
#
# Exit status: 0 if all guests passed, or if something needed is missing: it then prints SKIP and the reason, unless
# PARAVANE_REQUIRE names `linux` (for the kernel of another series, `linux-other`). 1 if anything failed. The consoles'
# output is left in target/linux/.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-100}
[ $# = 0 ] || shift
guests=("$@")
[ $# != 0 ] || guests=(current current-2 current-4 other grub)
# Added to the torture's time: far more than booting takes even on a busy machine.
start_s=300
mem=512M
# The limit of address space for the hypervisor's process of each guest, in KiB.
address_space=4000000
here=tests/linux
target=${CARGO_TARGET_DIR:-target}
work=$target/linux
check=linux
. tests/debian.sh

# Prints the package of the newest kernel of another series than package $1, of the same flavour.
other_package() {
    local series
    series=$(sed 's/^linux-image-\([0-9]*\.[0-9]*\)\..*/\1/' <<<"$1")
    apt-cache pkgnames linux-image- 2>/dev/null |
        grep -E '^linux-image-[0-9]+\.[0-9]+\.[0-9]+(-[0-9]+)?(\+(deb|bpo)[0-9.]*)?(-[0-9]+)?-amd64$' |
        grep -v -F "linux-image-$series." | sort -V | tail -n 1
}

# Makes the guests' file system: busybox, the torture program, and `init`.
file_system() {
    local root=$work/root triple=x86_64-unknown-linux-gnu
    # Linked statically, so that the guest needs none of this machine's libraries.
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

# start NAME LIMIT ARGUMENT...: starts a guest. Sets `from` and `to` to its console, `pid` to the hypervisor's process.
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
    # If this shell ends early, it leaves no guest behind.
    trap 'kill "$pid" 2>/dev/null || true' EXIT
}

# finish NAME: logs the rest of its console, waits for its end and sets `status` to its exit status.
finish() {
    cat <&"$from" >>"$log"
    status=0
    wait "$pid" || status=$?
    trap - EXIT
}

# fail NAME WHY: reports a failure with the last lines of the console, and returns 1.
fail() {
    say "$1: FAIL: $2"
    say "$1: from $work/$1.console:"
    tr -d '\r' <"$work/$1.console" | tail -n 40
    return 1
}

# linux NAME PACKAGE: tests a kernel of Debian's, with as many vCPUs as NAME ends in, or one.
linux() {
    local vcpus=${1##*[!0-9]}
    local name=$1 kernel=("$work/$2"/boot/vmlinuz-*) line one=$((RANDOM % 1000)) two=$((RANDOM % 1000))
    local answer= verdict= tortured=
    start "$name" $((seconds + start_s)) --mem "$mem" --vcpus "${vcpus:-1}" --initrd "$work/initramfs" \
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

# grub NAME: tests Debian's GRUB for paravirtual domains.
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
[ -r /dev/kvm ] && [ -w /dev/kvm ] || nothing '/dev/kvm is missing or may not be opened'
install_tools cpio=cpio
mkdir -p "$work"
find_kernel
current=$kernel
other=$(other_package "$current")

declare -A package=([current]=$current [current-2]=$current [current-4]=$current [other]=$other [grub]=grub-xen-host)
linux_file='./boot/vmlinuz-*'
declare -A file=([current]=$linux_file [current-2]=$linux_file [current-4]=$linux_file [other]=$linux_file)
file[grub]='*/grub-x86_64-xen.bin'
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

# If this script ends early, it leaves no guest behind.
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
