#!/usr/bin/env bash
# Makes a small arm64 Debian with Python in a folder, for tests on an emulated device (as root).
#
#   docker/arm64-root.sh FOLDER
#
# It has a /proc of its own while it is there: `umount -R FOLDER/proc` before it is removed.
#
# Needs mmdebstrap, arch-test, qemu-user-static and binfmt-support. FOLDER and those above it must be root's alone, since
# sshd changes its root to it.
set -Eeuo pipefail

readonly root=${1:?usage: docker/arm64-root.sh FOLDER}
packages=python3-minimal,libpython3.11-stdlib,python3-distutils,libstdc++6,libgomp1,base-files,base-passwd,libc6,libc-bin
packages+=,dash,coreutils,ca-certificates

for tool in mmdebstrap update-binfmts; do
    command -v "$tool" >/dev/null \
        || { echo "arm64-root: $tool is missing; on Debian: apt-get install mmdebstrap arch-test qemu-user-static binfmt-support" >&2; exit 5; }
done
if [[ ! -e /proc/sys/fs/binfmt_misc/register ]]; then mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc; fi
update-binfmts --enable qemu-aarch64
if [[ ! -x $root/usr/bin/python3 ]]; then
    rm -rf "$root"
    mkdir -p "$(dirname "$root")"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mmdebstrap --quiet --arch=arm64 --variant=extract --include=$packages bookworm "$work/root.tar"
    mkdir "$root"
    tar -xf "$work/root.tar" -C "$root"
    # Extracted only: nothing ran that would have made these. sshd starts the shell that the host names for the user.
    ln -sf dash "$root/bin/sh"
    ln -sf dash "$root/bin/bash"
    ln -sf python3.11 "$root/usr/bin/python3"
    mkdir -p "$root/root" "$root/tmp" "$root/dev"
    [[ -c $root/dev/null ]] || mknod -m 666 "$root/dev/null" c 1 3
    [[ -c $root/dev/urandom ]] || mknod -m 666 "$root/dev/urandom" c 1 9
fi
# ONNX Runtime opens weights through /proc, and reads the processor's features there: it would see this machine's own.
mkdir -p "$root/proc"
if ! mountpoint -q "$root/proc"; then mount -t proc proc "$root/proc"; fi
if ! mountpoint -q "$root/proc/cpuinfo"; then
    printf 'processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n' >"$root/cpuinfo"
    mount --bind "$root/cpuinfo" "$root/proc/cpuinfo"
fi
chroot "$root" /usr/bin/python3 -c 'import platform; print(platform.machine(), platform.python_version())'
