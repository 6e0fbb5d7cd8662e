# The steps of `setup`, which sources this file: each looks first and changes only what is missing.
# shellcheck shell=sh
: "${top:?}" "${package:?}" "${UV_VERSION:?}" # set by setup

step() { printf '==> %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

set_up_machine() {
    started=$(date +%s)
    refuse_unfit_machine
    make_cache
    # One set-up at a time; the lock goes with the last process that holds it.
    exec 9>"$CRUCIBLE_CACHE/.lock"
    flock --nonblock 9 || { step "waiting for another set-up to end"; flock 9; }
    log=$CRUCIBLE_CACHE/setup.log
    : >"$log"
    remove_leftovers
    install_packages
    install_uv
    install_environment
    install_runsc
    build_init
    build_images
    step "this machine is set up for Crucible ($(($(date +%s) - started)) s)"
}

# A Docker that is there, whoever put it there, is left alone: Debian's would replace it.
set_up_tests() {
    missing=
    command -v dockerd >/dev/null || missing="$DEBIAN_TEST_PACKAGES "
    has_postgresql || missing="$missing$DEBIAN_TEST_DATABASE "
    [ -n "$missing" ] || return 0
    refuse_unfit_machine
    make_cache
    exec 9>"$CRUCIBLE_CACHE/.lock"
    flock 9
    log=$CRUCIBLE_CACHE/setup.log
    # The tests start servers of their own: the machine gets the programs, and no server that runs.
    no_cluster=/etc/postgresql-common/createcluster.d/crucible.conf
    has_postgresql || { mkdir -p "${no_cluster%/*}" && echo "create_main_cluster = false" >"$no_cluster"; }
    install_these "$missing" "for the tests" --no-remove
    rm -f "$no_cluster"
}

has_postgresql() { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }

# Each in a place of its own: nothing of Crucible uses them but the benchmarks.
set_up_peers() {
    set_up_tests
    refuse_unfit_machine
    make_cache
    exec 9>"$CRUCIBLE_CACHE/.lock"
    flock 9
    log=$CRUCIBLE_CACHE/setup.log
    missing=$(missing_of "$DEBIAN_PEER_PACKAGES")
    [ -z "$missing" ] || install_these "$missing" "to be compared with"
    "$top/.venv/bin/python" -m crucible_deploy.bench.peers.libraries 9>&-
}

set_up_environment() {
    environment_is_current && return
    if [ "$(id -u)" = 0 ]; then
        make_cache
        exec 9>"$CRUCIBLE_CACHE/.lock"
        flock 9
        log=$CRUCIBLE_CACHE/setup.log
        [ -x /usr/bin/python3 ] || fail "Python is missing: make setup"
        install_uv
    else
        log=/dev/null
        uv=$(find_uv) || fail "the Python environment $top/.venv is missing or out of date, and there is no uv $UV_VERSION to make it.
Either run \`sudo make setup\`, or install uv $UV_VERSION (python3 -m venv ~/uv && ~/uv/bin/pip install uv==$UV_VERSION) and put it on PATH."
    fi
    install_environment
}

# Says all that is missing at once, and ends before anything has changed.
refuse_unfit_machine() {
    tab=$(printf '\t')
    faults=$(checks_before | grep "^fail$tab" | awk -F '\t' '{ printf "  %-8s %s\n           to mend it: %s\n", $2, $3, $4 }')
    [ -z "$faults" ] || fail "this machine cannot run Crucible as it is; nothing was changed.
$faults"
}

make_cache() {
    mkdir -p "$CRUCIBLE_CACHE"
    chmod 755 "$CRUCIBLE_CACHE"
    [ -e "$CRUCIBLE_CACHE/.crucible" ] || echo "Made by Crucible; make uninstall removes it." >"$CRUCIBLE_CACHE/.crucible"
}

remove_leftovers() {
    for leftover in "$CRUCIBLE_CACHE"/.building-* "$CRUCIBLE_CACHE"/runsc/.building-* "$CRUCIBLE_CACHE"/uv/.building-*; do
        [ ! -e "$leftover" ] || rm -rf "$leftover"
    done
}

# Runs a command with its output in the log; shows the end of the log when it fails.
logged() {
    before=$(wc -l <"$log")
    printf '+ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 && return
    status=$?
    tail -n "+$((before + 1))" "$log" | tail -n 8 | sed 's/^/    /' >&2
    return $status
}

install_packages() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    install_these "$missing" ""
}

# PACKAGES FOR_WHAT [APT_OPTION...]
install_these() {
    missing=$1
    step "installing Debian packages${2:+ $2}: $missing"
    shift 2
    # shellcheck disable=SC2086 # a list of words
    apt-cache show $missing >/dev/null 2>&1 || update_package_lists
    # The lists may be older than what the mirror still holds: once more with fresh ones before giving up.
    # shellcheck disable=SC2086
    apt_install "$@" $missing >>"$log" 2>&1 && return
    update_package_lists
    # shellcheck disable=SC2086
    logged apt_install "$@" $missing || fail "apt-get could not install: $missing(see $log)"
}

update_package_lists() { logged apt-get -q update || fail "apt-get update failed; is there a network? (see $log)"; }

apt_install() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l \
        apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install "$@" 9>&-
}

find_uv() {
    for candidate in "$CRUCIBLE_CACHE/uv/$UV_VERSION/bin/uv" "$(command -v uv || true)"; do
        if uv_is_pinned "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    return 1
}

install_uv() {
    folder=$CRUCIBLE_CACHE/uv/$UV_VERSION
    uv=$folder/bin/uv
    uv_is_pinned "$uv" && return
    mkdir -p "$CRUCIBLE_CACHE/uv"
    work=$(mktemp -d "$CRUCIBLE_CACHE/uv/.building-XXXXXX")
    mkdir "$work/made" "$work/made/bin"
    if found=$(find_uv); then
        step "copying uv $UV_VERSION from $found"
        cp "$found" "$work/made/bin/uv"
    else
        step "installing uv $UV_VERSION from PyPI"
        logged /usr/bin/python3 -m venv "$work/venv" || fail "python3 -m venv failed (see $log)"
        logged "$work/venv/bin/pip" install --quiet --disable-pip-version-check "uv==$UV_VERSION" ||
            fail "pip could not install uv $UV_VERSION; is there a network? (see $log)"
        cp "$work/venv/bin/uv" "$work/made/bin/uv"
    fi
    chmod 755 "$work/made/bin/uv"
    rm -rf "$folder"
    mv "$work/made" "$folder"
    rm -rf "$work"
    uv_is_pinned "$uv" || fail "$uv does not run"
}

# What the environment was made from: the lock, the distributions' metadata and the interpreter.
environment_stamp() {
    (
        cd "$top" || exit
        cat uv.lock pyproject.toml protos/pyproject.toml gateway/pyproject.toml gateway/client/pyproject.toml executor/pyproject.toml \
            executor/worker/pyproject.toml monitor/pyproject.toml storage/pyproject.toml deploy/pyproject.toml
        .venv/bin/python -I -c 'import sys; print(sys.version, sys.base_prefix, sys.prefix)'
    ) 2>/dev/null | sha256sum | cut -d' ' -f1
}

environment_is_current() {
    [ -x "$top/.venv/bin/python" ] && [ "$(cat "$top/.venv/.crucible" 2>/dev/null)" = "$(environment_stamp)" ]
}

install_environment() {
    environment_is_current && return
    step "installing the locked Python environment into $top/.venv"
    if python_is_recent /usr/bin/python3; then
        UV_PYTHON=/usr/bin/python3
    else
        # Below the cache, where every user can read it: uv's own place is in the home of whoever runs it.
        UV_PYTHON_INSTALL_DIR=$CRUCIBLE_CACHE/python UV_PYTHON_PREFERENCE=only-managed UV_PYTHON=3.12
        [ "$(id -u)" = 0 ] || unset UV_PYTHON_INSTALL_DIR
        export UV_PYTHON_PREFERENCE
        [ -z "${UV_PYTHON_INSTALL_DIR:-}" ] || export UV_PYTHON_INSTALL_DIR
    fi
    export UV_PYTHON
    # The packages that were downloaded once serve `crucible up` too, whichever home its caller has.
    [ "$(id -u)" != 0 ] || export UV_CACHE_DIR="${UV_CACHE_DIR:-$CRUCIBLE_CACHE/uv-cache}"
    sync_environment || fail "uv could not install the environment; is there a network? (uv's own words are above)"
    environment_stamp >"$top/.venv/.crucible"
}

sync_environment() { (cd "$top" && "$uv" sync --frozen --quiet --link-mode copy 9>&-); }

install_runsc() {
    [ -n "$(runsc_fault "$CRUCIBLE_CACHE/runsc/current/runsc")" ] || return 0
    mkdir -p "$CRUCIBLE_CACHE/runsc"
    work=$(mktemp -d "$CRUCIBLE_CACHE/runsc/.building-XXXXXX")
    if [ -z "$(runsc_fault "$CRUCIBLE_CACHE/runsc/$RUNSC_VERSION/runsc")" ]; then
        use_runsc "$RUNSC_VERSION"
    elif runsc_from_path || runsc_from_go || runsc_from_release; then
        adopt_runsc
    else
        rm -rf "$work"
        fail "there is no usable runsc. Put one of $RUNSC_OLDEST or later on PATH (https://gvisor.dev/docs/user_guide/install), or install
Go 1.26 or later, or let this machine reach $RUNSC_RELEASES; then run it again. The log is $log."
    fi
    rm -rf "$work"
}

runsc_from_path() {
    found=$(command -v runsc) || return 1
    fault=$(runsc_fault "$found")
    [ -z "$fault" ] || { step "the runsc on PATH, $found, is $fault: not used"; return 1; }
    step "copying runsc from $found"
    cp "$found" "$work/runsc"
}

# With caches of its own: the caller's may lie in a home that is not there, and would keep a gigabyte of it.
runsc_from_go() {
    command -v go >/dev/null || return 1
    step "building runsc $RUNSC_VERSION with $(go env GOVERSION) (one to three minutes)"
    label=$RUNSC_VERSION-${RUNSC_MODULE##*-}
    if logged env GOFLAGS=-modcacherw CGO_ENABLED=0 GOBIN="$work" GOPATH="$work/go" GOMODCACHE="$work/go/pkg/mod" GOCACHE="$work/cache" \
        go install -trimpath -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$label" "$RUNSC_MODULE"; then
        return 0
    fi
    step "the build failed (see $log); trying the official release"
    return 1
}

runsc_from_release() {
    url=$RUNSC_RELEASES/$(uname -m)
    step "downloading the official release of runsc from $url"
    for file in runsc runsc.sha512; do
        logged wget --no-verbose --timeout 30 --tries 3 -O "$work/$file" "$url/$file" || return 1
    done
    (cd "$work" && sha512sum --check --status runsc.sha512) || { step "its SHA-512 is wrong: not used"; return 1; }
}

adopt_runsc() {
    chmod 755 "$work/runsc"
    fault=$(runsc_fault "$work/runsc")
    [ -z "$fault" ] || fail "the new runsc is $fault"
    date=$(runsc_date "$work/runsc")
    mkdir "$work/made"
    mv "$work/runsc" "$work/made/runsc"
    rm -rf "$CRUCIBLE_CACHE/runsc/${date:?}"
    mv "$work/made" "$CRUCIBLE_CACHE/runsc/$date"
    use_runsc "$date"
}

use_runsc() {
    ln -sfn "$1" "$work/current"
    mv -T "$work/current" "$CRUCIBLE_CACHE/runsc/current"
}

build_init() {
    "$top/executor/init/build.sh" "$CRUCIBLE_CACHE/init" >"$CRUCIBLE_CACHE/.init" 2>>"$log" 9>&- ||
        fail "the sandbox's init could not be built (see $log)"
    rm -f "$CRUCIBLE_CACHE/.init"
}

build_images() {
    # A recipe that is current is seen in a quarter of a second; only a build is worth a line before it starts.
    image=$("$top/.venv/bin/python" -m crucible_deploy.images status) && return
    step "building the root file system of the sandboxes ($image; one to three minutes)"
    "$top/.venv/bin/python" -m crucible_deploy.images ensure
}
