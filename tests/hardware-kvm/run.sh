#!/usr/bin/env bash
# Tests Paravane on KVM with hardware support, on any x86-64 machine: QEMU emulates, in software, a machine with AMD's
# SVM, and boots a stock Debian kernel with kvm-amd in it. There it runs the tests of the engine's contract, the
# whole-system tests, `paravane compare` and `paravane doctor`, once over each transport.
#
# usage: tests/hardware-kvm/run.sh [TRANSPORT...]     default: pio vmcall
#
# Exit status: 0 if all passed, or if something needed is missing: it then prints SKIP and the reason, unless
# PARAVANE_REQUIRE names `hardware-kvm`. 1 if anything failed; a machine without a verdict is a failure.
# The consoles' output is left in target/hardware-kvm/.
set -euo pipefail
cd "$(dirname "$0")/../.."

transports=("$@")
[ $# != 0 ] || transports=(pio vmcall)
# Far more than a slow machine takes; the steps in `init` have limits of their own.
limit_s=2400
here=tests/hardware-kvm
target=${CARGO_TARGET_DIR:-target}
work=$target/hardware-kvm
check=hardware-kvm
. tests/debian.sh
# In the order of their dependencies.
modules=(irqbypass kvm ccp kvm-amd)

# Fetches busybox, and the kernel and its modules into $unpacked.
packages() {
    local wanted=('./boot/vmlinuz-*') module
    for module in "${modules[@]}"; do wanted+=("*/kernel/*/$module.ko*"); done
    find_kernel
    unpacked=$work/$kernel
    fetch "$kernel" "${wanted[@]}" || nothing "cannot fetch $kernel"
    fetch busybox-static './bin/busybox' || nothing 'cannot fetch busybox-static'
    find "$unpacked" -name '*.ko.xz' -exec xz -d {} +
}

# Builds the program that `cargo test` would run with these arguments, and prints its path.
test_program() {
    cargo test --locked --no-run --message-format=json-render-diagnostics "$@" |
        sed -n 's/.*"reason":"compiler-artifact".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

# Makes the machine's file system: programs, the libraries they need, kernel modules and `init`.
file_system() {
    local root=$work/root engine system
    rm -rf "$root"
    mkdir -p "$root"/{bin,dev,modules,proc,sys,tmp}
    cargo build --release --locked --quiet -p paravane
    # Each in the profile that makes building and running it shortest: the contract's tests take seconds in either.
    engine=$(test_program -p paravane --lib)
    system=$(test_program --release -p paravane-tests --test system)
    install -m 755 "$here/init" "$root/init"
    install -m 755 "$work/busybox-static/bin/busybox" "$root/bin/busybox"
    install -m 755 "$target/release/paravane" "$root/bin/paravane"
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
# SMAP is off because QEMU's emulation of IRETQ reads the stack with supervisor rights even at CPL 3. `tsc=reliable`
# keeps the kernel from measuring, and then distrusting, the emulated time-stamp counter, which guests need, and
# `no_timer_check` from giving up on a busy host, where its first ticks come late.
machine() {
    local transport=$1
    timeout -k 10 "$limit_s" qemu-system-x86_64 -accel tcg -cpu max,+svm,-smap -m 2048 -nodefaults -display none \
        -no-reboot -serial stdio -kernel "$unpacked"/boot/vmlinuz-* -initrd "$work/initramfs" \
        -append "console=ttyS0 loglevel=4 panic=-1 tsc=reliable no_timer_check paravane.transport=$transport" \
        </dev/null >"$work/$transport.console" 2>&1
}

# judge TRANSPORT STATUS: reports what the machine's console said, and returns 1 unless everything passed.
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

[ "$(uname -m)" = x86_64 ] || nothing "this is a $(uname -m), not an x86-64"
install_tools qemu-system-x86_64=qemu-system-x86 cpio=cpio
mkdir -p "$work"
packages
file_system

# If this script ends early, it leaves no machine behind.
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
