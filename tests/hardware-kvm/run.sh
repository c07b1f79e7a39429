#!/usr/bin/env bash
# Tests Paravane on KVM with hardware support, on any x86-64 machine: QEMU emulates, in software, a machine with AMD's
# SVM; a stock Debian kernel with kvm-amd runs in it; and in that the engine's contract, the whole-system tests,
# `paravane compare` and `paravane doctor`, once over each transport.
#
# usage: tests/hardware-kvm/run.sh [TRANSPORT...]     default: pio vmcall
#
# Exit status: 0 if all passed, or if something that it needs is not there and PARAVANE_REQUIRE does not name
# `hardware-kvm` (it then says SKIP and why); 1 if anything failed. No verdict from the machine is a failure.
# What the consoles showed is left in target/hardware-kvm/.
set -euo pipefail
cd "$(dirname "$0")/../.."

transports=("$@")
[ $# != 0 ] || transports=(pio vmcall)
# Far more than it takes on a slow machine; the steps in `init` have limits of their own.
limit_s=2400
here=tests/hardware-kvm
work=${CARGO_TARGET_DIR:-target}/hardware-kvm
# In the order in which they need each other.
modules=(irqbypass kvm ccp kvm-amd)

say() { printf 'hardware-kvm: %s\n' "$*"; }

# What is needed is not there: nothing can be tested.
absent() {
    case ",${PARAVANE_REQUIRE:-}," in
        *[,\ ]hardware-kvm[,\ ]*)
            say "FAIL: PARAVANE_REQUIRE=$PARAVANE_REQUIRE, but $*"
            exit 1
            ;;
    esac
    printf 'SKIP: hardware-kvm: %s\n' "$*"
    exit 0
}

as_root() { [ "$(id -u)" = 0 ]; }

update_lists() {
    as_root && apt-get update -qq
}

# Installs QEMU and cpio where that may be done and they are not there.
tools() {
    local missing=()
    command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
    command -v cpio >/dev/null || missing+=(cpio)
    [ ${#missing[@]} != 0 ] || return 0
    as_root && command -v apt-get >/dev/null || absent "not installed: ${missing[*]} (as root they would be)"
    say "installing ${missing[*]}"
    local install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
    DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null ||
        { update_lists && DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null; } ||
        absent "cannot install ${missing[*]}"
}

# The package that the meta package of the current kernel stands for.
kernel_package() {
    apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

# Fetches kernel and busybox and unpacks of them what is needed, once for each kernel. Nothing is installed.
kernel() {
    command -v apt-get >/dev/null || absent "there is no apt-get to fetch Debian's kernel with"
    local package
    package=$(kernel_package)
    if [ -z "$package" ]; then
        update_lists || true
        package=$(kernel_package)
    fi
    [ -n "$package" ] || absent "apt knows no linux-image-amd64 (Debian's); as root its lists would be updated"
    unpacked=$work/$package
    [ ! -e "$unpacked/complete" ] || return 0
    say "fetching $package"
    rm -rf "$unpacked"
    mkdir -p "$unpacked"
    fetch "$package" busybox-static || { update_lists && fetch "$package" busybox-static; } ||
        absent "cannot fetch $package and busybox-static"
    local wanted=(./boot/vmlinuz-\*)
    for module in "${modules[@]}"; do wanted+=("*/kernel/*/$module.ko*"); done
    dpkg-deb --fsys-tarfile "$unpacked/$package"_*.deb | tar -x -C "$unpacked" --wildcards "${wanted[@]}"
    dpkg-deb --extract "$unpacked"/busybox-static_*.deb "$unpacked"
    find "$unpacked" -name '*.ko.xz' -exec xz -d {} +
    rm "$unpacked"/*.deb
    touch "$unpacked/complete"
}

fetch() {
    # apt warns that its own user cannot write here, which it need not.
    (cd "$unpacked" && apt-get download -qq "$@" 2>/dev/null)
}

# Builds what `cargo test` would run with these arguments; prints the program's path.
test_program() {
    cargo test --locked --no-run --message-format=json-render-diagnostics "$@" |
        sed -n 's/.*"reason":"compiler-artifact".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

# The machine's file system: programs, what they are linked to, modules, and `init`.
file_system() {
    local root=$work/root engine system
    rm -rf "$root"
    mkdir -p "$root"/{bin,dev,modules,proc,sys,tmp}
    cargo build --release --locked --quiet -p paravane
    # Each in the profile in which building and running it takes less together: the contract is a matter of seconds.
    engine=$(test_program -p paravane --lib)
    system=$(test_program --release -p paravane-tests --test system)
    install -m 755 "$here/init" "$root/init"
    install -m 755 "$unpacked/bin/busybox" "$root/bin/busybox"
    install -m 755 "${CARGO_TARGET_DIR:-target}/release/paravane" "$root/bin/paravane"
    install -m 755 "$engine" "$root/bin/engine"
    install -m 755 "$system" "$root/bin/system"
    strip --strip-debug "$root"/bin/{paravane,engine,system}
    local library
    for library in $(ldd "$root"/bin/{paravane,engine,system} 2>/dev/null | grep -o '/[^ :]*\.so[^ ]*' | sort -u); do
        install -D -m 755 "$library" "$root$library"
    done
    for module in "${modules[@]}"; do
        find "$unpacked/lib" "$unpacked/usr/lib" -name "$module.ko" -exec cp {} "$root/modules/" \; 2>/dev/null || true
        [ -e "$root/modules/$module.ko" ] || { say "FAIL: $unpacked has no module $module"; exit 1; }
    done
    (cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet) >"$work/initramfs"
    rm -rf "$root"
}

# Runs the machine until it switches itself off.
#
# SMAP is left out because QEMU's emulation of IRETQ reads the stack as a supervisor even at CPL 3. The time-stamp
# counter is called reliable because the kernel would otherwise measure, and distrust, a counter that is emulated; guests
# need it.
machine() {
    local transport=$1
    timeout -k 10 "$limit_s" qemu-system-x86_64 -accel tcg -cpu max,+svm,-smap -m 2048 -nodefaults -display none \
        -no-reboot -serial stdio -kernel "$unpacked"/boot/vmlinuz-* -initrd "$work/initramfs" \
        -append "console=ttyS0 loglevel=4 panic=-1 tsc=reliable paravane.transport=$transport" \
        </dev/null >"$work/$transport.console" 2>&1
}

# What the console of a machine that ended with this status says; fails unless it is a pass.
judge() {
    local transport=$1 status=$2 console lines verdict
    tr -d '\r' <"$work/$transport.console" >"$work/$transport.txt"
    console=$work/$transport.txt
    lines=$(sed -n 's/^hardware-kvm: //p' "$console")
    verdict=$(sed -n 's/^VERDICT //p' <<<"$lines")
    grep -v -e '^begin' -e '^VERDICT' -e '^$' <<<"$lines" | sed "s/^/hardware-kvm: $transport: /" || true
    if [ "$status" = 0 ] && [ "$verdict" = pass ]; then
        return 0
    fi
    case $status in
        0) say "$transport: ${verdict:-failed: no verdict, and the machine has stopped}" ;;
        124 | 137) say "$transport: failed: no verdict within $limit_s s" ;;
        *) say "$transport: failed: QEMU ended with status $status" ;;
    esac
    say "$transport: from $console:"
    if [ -n "$verdict" ]; then
        grep -B 40 '^hardware-kvm: FAIL' "$console"
    else
        tail -n 60 "$console"
    fi
    return 1
}

[ "$(uname -m)" = x86_64 ] || absent "this is a $(uname -m), not an x86-64"
tools
mkdir -p "$work"
kernel
file_system

# Ended early, it leaves no machine behind.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
began=$SECONDS
declare -A machines
for transport in "${transports[@]}"; do
    machine "$transport" &
    machines[$transport]=$!
done
failed=
for transport in "${transports[@]}"; do
    status=0
    wait "${machines[$transport]}" || status=$?
    judge "$transport" "$status" || failed="$failed $transport"
done
if [ -n "$failed" ]; then
    say "FAIL:$failed"
    exit 1
fi
say "passed over ${transports[*]} in $((SECONDS - began)) s"
