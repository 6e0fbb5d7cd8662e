#!/bin/sh
# What a machine needs for Crucible: one list for `deploy/install/setup` and `crucible doctor`. Changes nothing.
#
#   machine_checks.sh            all checks, one line each: STATUS <tab> NAME <tab> WHAT WAS FOUND <tab> HOW TO MEND IT
#
# STATUS is `ok`, `todo` (set-up installs it) or `fail` (set-up cannot mend it). Set-up sources this file for its functions.
# Settings: CRUCIBLE_CACHE, CRUCIBLE_HOME. The versions come from versions.env beside this file.

PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin
export PATH
CRUCIBLE_CACHE=${CRUCIBLE_CACHE:-/var/cache/crucible}
CRUCIBLE_HOME=${CRUCIBLE_HOME:-/var/lib/crucible}
DEBIAN_PACKAGES="python3 python3-venv gcc libc6-dev make debootstrap debian-archive-keyring gpgv ca-certificates wget erofs-utils"
# What only the tests need: a dockerd, which they start themselves, apart from any other. `make test` installs it where
# there is none at all; nothing else does.
DEBIAN_TEST_PACKAGES="docker.io"
# PostgreSQL's programs, for servers that the tests start themselves.
DEBIAN_TEST_DATABASE="postgresql"
# What only the benchmarks compare with, beside a dockerd. `make bench-peers` and `make bench-full` install it.
DEBIAN_PEER_PACKAGES="bubblewrap"
MOST_DISK_MB=4096  # for set-up from nothing: the sources and objects of runsc are most of it
LEAST_DISK_MB=512  # for a machine that has everything

say() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4"; }

check_system() {
    mend="use Debian 12 or later, or Ubuntu 22.04 or later, on x86_64 or aarch64 (a virtual machine will do)"
    kernel=$(uname -s) machine=$(uname -m)
    distribution=$(. /etc/os-release 2>/dev/null && printf '%s %s' "${ID:-unknown}" "${VERSION_ID:-0}") || distribution="unknown 0"
    found="$kernel $machine, $distribution"
    case "$kernel $machine" in
        "Linux x86_64" | "Linux aarch64") ;;
        *) say fail system "$found" "$mend"; return ;;
    esac
    major=${distribution#* } major=${major%%.*}
    case "$major" in '' | *[!0-9]*) major=0 ;; esac
    case "${distribution%% *}" in
        debian) [ "$major" -ge 12 ] ;;
        ubuntu) [ "$major" -ge 22 ] && [ "${distribution#* }" != 22.10 ] ;;
        *) false ;;
    esac || { say fail system "$found" "$mend"; return; }
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        say fail system "$found, without apt" "$mend"
        return
    fi
    say ok system "$found" ""
}

check_root() {
    if [ "$(id -u)" = 0 ]; then
        say ok root "yes" ""
    else
        say fail root "running as $(id -un 2>/dev/null || id -u)" \
            "run it as root (sudo make ...): sandboxes, users and system packages need it; make test-unit does not"
    fi
}

check_folders() {
    for folder in "$CRUCIBLE_CACHE" "$CRUCIBLE_HOME"; do
        case "$folder" in
            /*/*) ;;
            *) say fail folders "$folder" "CRUCIBLE_CACHE and CRUCIBLE_HOME must be absolute paths, not directly below /"; return ;;
        esac
        if [ -e "$folder" ] && [ ! -d "$folder" ]; then
            say fail folders "$folder is no folder" "remove it, or set CRUCIBLE_CACHE or CRUCIBLE_HOME to another path"
            return
        fi
    done
    for entry in "$CRUCIBLE_CACHE"/* "$CRUCIBLE_CACHE"/.*; do
        [ -e "$CRUCIBLE_CACHE/.crucible" ] && break
        case "${entry##*/}" in
            '*' | . | .. | '.*' | .lock | uv | uv-cache | runsc | images | init | python | peers | setup.log) ;;
            *) say fail folders "$CRUCIBLE_CACHE holds ${entry##*/}, which is not Crucible's" \
                "set CRUCIBLE_CACHE to a folder of its own"; return ;;
        esac
    done
    say ok folders "$CRUCIBLE_CACHE, $CRUCIBLE_HOME" ""
}

existing_parent() {
    parent=$1
    while [ ! -d "$parent" ]; do parent=$(dirname "$parent"); done
    printf '%s' "$parent"
}

check_disk() {
    needed=$LEAST_DISK_MB
    [ -x "$CRUCIBLE_CACHE/runsc/current/runsc" ] && [ -f "$CRUCIBLE_CACHE/images/python.json" ] || needed=$MOST_DISK_MB
    for folder in "$CRUCIBLE_CACHE" "$CRUCIBLE_HOME"; do
        parent=$(existing_parent "$folder")
        free=$(df -Pm "$parent" | awk 'NR == 2 { print $4 }')
        if [ "${free:-0}" -lt "$needed" ]; then
            say fail disk "$free MB free in $parent, $needed MB needed" "make room, or set CRUCIBLE_CACHE and CRUCIBLE_HOME"
            return
        fi
        needed=$LEAST_DISK_MB
    done
    say ok disk "$(df -Pm "$(existing_parent "$CRUCIBLE_CACHE")" | awk 'NR == 2 { print $4 }') MB free" ""
}

missing_packages() { missing_of "$DEBIAN_PACKAGES"; }

missing_of() {
    for package in $1; do
        # dpkg-query fails for a package it never heard of, and prints another state for one that was removed.
        state=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) || state=missing
        [ "$state" = installed ] || printf '%s ' "$package"
    done
}

check_packages() {
    command -v dpkg-query >/dev/null || return 0
    missing=$(missing_packages)
    if [ -z "$missing" ]; then
        say ok packages "all installed" ""
    else
        say todo packages "missing: ${missing% }" "apt-get install --no-install-recommends ${missing% }"
    fi
}

python_is_recent() {
    [ -x "$1" ] && "$1" -I -c "import sys; sys.exit(sys.version_info < tuple(map(int, '$PYTHON_OLDEST'.split('.'))))" 2>/dev/null
}

# The interpreter that services use must be one that every user can read: never one from PATH, which may be a home's.
check_python() {
    if python_is_recent /usr/bin/python3; then
        say ok python "/usr/bin/python3 is $(/usr/bin/python3 -I -c 'import platform; print(platform.python_version())')" ""
    elif found=$(installed_python); then
        say ok python "$found" ""
    else
        say todo python "no /usr/bin/python3 of version $PYTHON_OLDEST or later" "make setup installs one below $CRUCIBLE_CACHE/python"
    fi
}

installed_python() {
    for candidate in "$CRUCIBLE_CACHE"/python/*/bin/python3; do
        if python_is_recent "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    return 1
}

uv_is_pinned() { [ -x "$1" ] && [ "$("$1" --version 2>/dev/null | cut -d' ' -f2)" = "$UV_VERSION" ]; }

check_uv() {
    if uv_is_pinned "$CRUCIBLE_CACHE/uv/$UV_VERSION/bin/uv"; then
        say ok uv "$UV_VERSION" ""
    else
        say todo uv "no uv $UV_VERSION in $CRUCIBLE_CACHE" "make setup"
    fi
}

# The date of a runsc as YYYYMMDD. A release says it (`release-20250101.0`); one that Go built says VERSION_MISSING, and
# its build information holds the version of the module.
runsc_date() {
    date=$(timeout 10 "$1" --version 2>/dev/null | grep -oE '20[0-9]{6}' | head -n 1)
    [ -n "$date" ] || date=$(grep -a -o -E 'gvisor\.dev/gvisor.v0\.0\.0-20[0-9]{6}' "$1" 2>/dev/null | head -n 1 | tail -c 9)
    printf '%s' "$date"
}

# Prints what is wrong with a runsc; nothing when it is fit for use. A dynamic one cannot start a sandbox: its libraries
# are not there once it has left the host's root.
runsc_fault() {
    if [ ! -x "$1" ]; then
        printf 'not there'
    elif [ "$(head -c 4 "$1" | tail -c 3)" != ELF ]; then
        printf 'no ELF binary'
    elif ldd "$1" >/dev/null 2>&1; then
        printf 'dynamically linked'
    else
        fault_date=$(runsc_date "$1")
        if [ -z "$fault_date" ]; then
            printf 'of unknown version'
        elif [ "$fault_date" -lt "$RUNSC_OLDEST" ]; then
            printf 'of %s, too old (%s or later is needed)' "$fault_date" "$RUNSC_OLDEST"
        fi
    fi
}

check_runsc() {
    runsc=$CRUCIBLE_CACHE/runsc/current/runsc
    fault=$(runsc_fault "$runsc")
    if [ -z "$fault" ]; then
        say ok runsc "of $(runsc_date "$runsc"), static" ""
    else
        say todo runsc "$runsc is $fault" "make setup takes one from PATH, builds it with Go, or downloads the release"
    fi
}

check_init() {
    if [ -x "$CRUCIBLE_CACHE/init/current/crucible-init" ] && [ -x "$CRUCIBLE_CACHE/init/current/crucible-launch" ]; then
        say ok init "$(readlink "$CRUCIBLE_CACHE/init/current" | cut -c 1-12)" ""
    else
        say todo init "not built" "make setup"
    fi
}

# What set-up must find before it may change anything.
checks_before() {
    check_system
    check_root
    check_folders
    check_disk
}

checks_of_installation() {
    check_packages
    check_python
    check_uv
    check_runsc
    check_init
}

case "${0##*/}" in
    machine_checks.sh)
        # shellcheck source=/dev/null
        . "$(dirname "$0")/versions.env"
        checks_before
        checks_of_installation
        ;;
esac
