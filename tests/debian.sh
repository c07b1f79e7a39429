# What tests/linux/run.sh and tests/hardware-kvm/run.sh share, to be sourced: their messages, and how they get Debian's
# packages. The caller sets `check`, its name in messages and in PARAVANE_REQUIRE, and `work`, its directory.

say() { printf '%s: %s\n' "$check" "$*"; }

# absent REQUIREMENT WHY: what REQUIREMENT stands for cannot be tested here. A failure if PARAVANE_REQUIRE names it.
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

# nothing WHY: nothing can be tested here.
nothing() {
    absent "$check" "$@"
    exit 0
}

as_root() { [ "$(id -u)" = 0 ]; }

update_lists() { as_root && apt-get update -qq; }

# with_lists COMMAND...: runs it and, if it fails, once more with current package lists.
with_lists() { "$@" || { update_lists && "$@"; }; }

# install_tools PROGRAM=PACKAGE...: installs the packages of missing programs, which only root can.
install_tools() {
    local tool missing=()
    for tool; do
        command -v "${tool%%=*}" >/dev/null || missing+=("${tool#*=}")
    done
    [ ${#missing[@]} != 0 ] || return 0
    as_root && command -v apt-get >/dev/null || nothing "not installed: ${missing[*]} (root could install them)"
    say "installing ${missing[*]}"
    with_lists apt_install "${missing[@]}" || nothing "cannot install ${missing[*]}"
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }

# Sets `kernel` to the package of the kernel that Debian's current release uses.
find_kernel() {
    command -v apt-get >/dev/null || nothing "there is no apt-get to fetch Debian's kernels with"
    kernel=$(depends_of_kernel)
    if [ -z "$kernel" ]; then
        update_lists || true
        kernel=$(depends_of_kernel)
    fi
    [ -n "$kernel" ] || nothing "apt knows no linux-image-amd64 (Debian's); root could update its lists"
}

# The package that linux-image-amd64 depends on; prints nothing if apt does not know it.
depends_of_kernel() {
    apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

# fetch PACKAGE FILE...: unpacks files (patterns of tar) of the package into $work/PACKAGE, once. Installs nothing.
fetch() {
    local package=$1 into=$work/$1
    shift
    [ ! -e "$into/complete" ] || return 0
    say "fetching $package"
    rm -rf "$into"
    mkdir -p "$into"
    with_lists download "$package" "$into" || return 1
    dpkg-deb --fsys-tarfile "$into"/*.deb | tar -x -C "$into" --wildcards "$@"
    rm "$into"/*.deb
    touch "$into/complete"
}

# apt warns that its own user cannot write to the directory. That user need not.
download() { (cd "$2" && apt-get download -qq "$1" 2>/dev/null); }
