#!/bin/sh
# Builds crucible-init (PID 1 of a sandbox), crucible-launch (what starts one) and crucible-tend (what minds a plain child
# process) for this machine.
#
#   build.sh [OUTDIR]     OUTDIR: default $CRUCIBLE_CACHE/init, CRUCIBLE_CACHE: default /var/cache/crucible
#
# The result lies in OUTDIR/<sha256 of the sources>/; OUTDIR/current points at it. Built once per version of the sources.
# Needs gcc and the kernel's headers (Debian: gcc, linux-libc-dev). Prints the folder.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${CRUCIBLE_CACHE:-/var/cache/crucible}/init}
cd "$here"
version=$(cat init.c launch.c tend.c left.h protocol.h sys.h build.sh | sha256sum | cut -d' ' -f1)
final=$out/$version
if [ ! -d "$final" ]; then
    umask 022
    mkdir -p "$out"
    work=$(mktemp -d "$out/.build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    flags="-std=gnu11 -static -no-pie -nostdlib -nostartfiles -ffreestanding -fno-stack-protector -fno-tree-loop-distribute-patterns
        -fno-asynchronous-unwind-tables -Os -s -Wall -Wextra -Werror -Wl,--build-id=none -Wl,-z,noexecstack"
    for program in init launch tend; do
        # shellcheck disable=SC2086
        ${CC:-gcc} $flags -o "$work/crucible-$program" "$program.c"
    done
    chmod 0755 "$work" "$work"/*
    mv -T "$work" "$final" 2>/dev/null || [ -d "$final" ] # another build may have been faster
fi
ln -sfn "$version" "$out/.current.$$" && mv -T "$out/.current.$$" "$out/current"
echo "$final"
