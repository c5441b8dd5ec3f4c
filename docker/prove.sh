#!/usr/bin/env bash
# Builds both images without Docker's engine and runs them, on amd64: `make test-containers`, as root, 10 GB of disk.
#
#   docker/prove.sh          everything below
#   docker/prove.sh device   only the device's image for amd64, a pico build of .venv validated in it, and that build's
#                            bundle as an image of its own; exit 5 where this machine cannot make containers
#
# 1. base images by mmdebstrap: one to build on, and small ones for the device, amd64 and arm64
# 2. the images by buildah: the pipeline's for amd64, the device's for amd64 and for arm64
# 3. a pico model, built in the pipeline's image by podman through scripts/engine.sh: read-only root, no capabilities,
#    another uid, no network
# 4. that build, validated in the device's image on amd64, and on arm64 by emulation, in the same way
# 5. with LLAMA_CPP=gguf, which compiles it twice, the same for llama.cpp on amd64, in a device image of its own
# 6. the pico build on an emulated arm64 device made by docker/arm64-root.sh, over ssh and as a bundle, from .venv
# 7. with FULL=1, the build of the target x86-cpu (FULL_ARGS are options for it) and its validation on amd64; on arm64,
#    where emulation takes hours for that, the artifact's stored inputs and logits only
#
# Figures go to benchmarks/results/containers.json; the work stays in runs/containers, base images in podman's store, the
# emulated device in ARM64_ROOT (default: /var/cache/sieve-edge/arm64-root), a folder that is root's like those above it.
# BUILD_MOUNTS, LLAMA_CPP and JOBS as in scripts/engine.sh; LLAMA_CPP is none here by default, since it takes minutes.
# ENGINE_ARGS are added to every podman run. CONTAINERS_CONF names a configuration for podman, where it needs another
# than the machine's: without systemd, runtime="runc" and cgroup_manager="cgroupfs" of [engine].
# Registers qemu for arm64 programs with the kernel, if it is not.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

readonly suite=bookworm work=runs/containers uid=10001
readonly base=localhost/sieve-edge-base:$suite small=localhost/sieve-edge-base:$suite-small
readonly qemu=/proc/sys/fs/binfmt_misc/qemu-aarch64
# What Python and the wheels need, unpacked only: no package manager, no shell but dash.
readonly packages=base-files,base-passwd,ca-certificates,coreutils,dash,libc-bin,libc6,libgomp1,libpython3.11-stdlib,libstdc++6,python3-minimal
readonly unpacked=(--variant=extract --include="$packages" --dpkgopt='path-exclude=/usr/share/doc/*'
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*')
readonly builder="buildah bud --isolation chroot --layers --pull-never"
readonly quick=(--set calibration_tokens=1500 --set threads=1 --set learn.fisher_prompts=64)

say() { printf 'prove: %s\n' "$*" >&2; }
fail() { say "$*"; exit 5; }

check_tools() { # TOOL...
    local tool
    for tool in buildah podman mmdebstrap catatonit "$@"; do
        command -v "$tool" >/dev/null || fail "$tool is missing; on Debian: apt-get install --no-install-recommends buildah" \
            "podman runc netavark mmdebstrap arch-test catatonit qemu-user-static binfmt-support openssh-server" \
            "openssh-client"
    done
    [[ $(id -u) == 0 && $(uname -m) == x86_64 ]] || fail "needs root, on x86_64"
}

register_qemu() {
    if [[ ! -e $qemu ]]; then
        mountpoint -q "${qemu%/*}" || mount -t binfmt_misc binfmt_misc "${qemu%/*}"
        update-binfmts --enable qemu-aarch64
    fi
}

make_base() { # IMAGE ARCH ARGUMENT...
    if podman image exists "$1"; then return; fi
    say "base $1"
    # shellcheck disable=SC2016 # mmdebstrap gives the hooks $1
    timeout 900 mmdebstrap --quiet --arch="$2" --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname"' \
        --customize-hook='mkdir -p "$1/tmp" && : >"$1/etc/pip.conf"' "${@:3}" "$suite" "$work/base.tar"
    podman import --quiet --arch "$2" "$work/base.tar" "$1"
    rm "$work/base.tar"
}

make_amd64_bases() {
    make_base "$base-amd64" amd64 --variant=minbase --include=ca-certificates,python3,python3-venv
    make_base "$small-amd64" amd64 "${unpacked[@]}"
}

make_bases() {
    make_amd64_bases
    make_base "$small-arm64" arm64 "${unpacked[@]}"
    # Under one name for both platforms, as public images are. For ONNX nothing is built on arm64, so small will do.
    # Made anew each time: it names images, of which one may have been made again.
    if podman manifest exists "$base"; then podman manifest rm "$base"; fi
    podman manifest create "$base"
    podman manifest add "$base" "containers-storage:$base-amd64"
    podman manifest add "$base" "containers-storage:$small-arm64"
}

make_images() {
    local arch
    export BUILDER=$builder
    BASE_IMAGE=$base LLAMA_CPP=${LLAMA_CPP:-none} scripts/engine.sh image build
    for arch in amd64 arm64; do
        BASE_IMAGE=$base RUN_IMAGE=$small-$arch DEVICE_IMAGE=sieve-edge-device:$arch PLATFORM=linux/$arch \
            scripts/engine.sh image device
    done
    if [[ ${LLAMA_CPP:-none} == gguf ]]; then
        BASE_IMAGE=$base RUN_IMAGE=$small-amd64 RUNTIME=gguf DEVICE_IMAGE=sieve-edge-device:gguf \
            PLATFORM=linux/amd64 scripts/engine.sh image device
    fi
}

in_image() { # [OPTION...] IMAGE [COMMAND...]: without network, capabilities or anything to write to; gets standard input
    # shellcheck disable=SC2086 # a list of words
    podman run --interactive --init --rm --no-healthcheck --network none --read-only --tmpfs /tmp --cap-drop all \
        --security-opt no-new-privileges --user "$uid:$uid" ${ENGINE_ARGS:-} "$@"
}

on_device() { # TAG COMMAND...: in the device's image
    local more=()
    if [[ $1 == arm64 ]]; then
        # ONNX Runtime reads the processor's features there, and would see the machine's own.
        more=(--platform linux/arm64 --env QEMU_CPU=cortex-a72 --volume "$PWD/$work/cpuinfo:/proc/cpuinfo:ro")
    fi
    in_image --volume "$PWD/$work:$PWD/$work" --workdir "$PWD" \
        --volume "$PWD/$work/cache/sieve-edge/container/packages:/cache/packages:ro" \
        "${more[@]}" "sieve-edge-device:$1" "${@:2}"
}

build() { # NAME TARGET [OPTION...]: in the pipeline's image
    local code=0
    rm -rf "${work:?}/$1"
    ENGINE=podman NETWORK=none scripts/engine.sh build "$2" --run-dir "$work/$1" "${@:3}" >"$work/$1.out" || code=$?
    python3 docker/agree.py limits "$code" "$work/$1.out"
    say "built $1 in the pipeline's image: exit $code"
}

build_here() { # NAME TARGET [OPTION...]: in .venv
    local code=0
    rm -rf "${work:?}/$1"
    .venv/bin/sieve-edge build --target "$2" --run-dir "$work/$1" "${@:3}" >"$work/$1.out" || code=$?
    python3 docker/agree.py limits "$code" "$work/$1.out"
    say "built $1 in .venv: exit $code"
}

validate() { # NAME TAG TARGET [OPTION...]: the build NAME, on the device
    local run=$work/$1-$2 code=0
    rm -rf "$run"
    cp -al "$work/$1" "$run"
    rm -r "$run/validate"
    on_device "$2" sieve_edge.cli validate --target "$3" --run-dir "$run" "${@:4}" </dev/null >"$run.out" || code=$?
    python3 docker/agree.py limits "$code" "$run.out"
    python3 docker/agree.py scores "$work/$1" "$run"
    say "validated $1 on $2: exit $code, $(tail -n 1 "$run.out")"
}

compare() { # NAME ARCH: the build's artifact with the logits that the export stored, as a job on standard input
    local told=$work/$1-$2-reference.json
    printf '{"job": "reference", "runtime": "onnxruntime", "threads": 1, "provider": "CPUExecutionProvider", %s}' \
        "\"folder\": \"$work/$1/export/pruned\", \"exact\": true" | on_device "$2" >"$told"
    python3 docker/agree.py logits "$told"
    say "compared $1 on $2: $(<"$told")"
}

prove_device() {
    local python=$PWD/.venv/bin/python mounts=() mount probe checked size
    probe=$(grep '^setuptools==' constraints.txt)
    check_tools
    [[ -x $python ]] || fail "$python is missing; run: make setup"
    mkdir -p "$work/inputs" "$work/cache/sieve-edge/container/packages"
    for mount in ${BUILD_MOUNTS:-}; do mounts+=(--volume "$mount"); done
    (make_amd64_bases && timeout 300 podman run --rm --network host "${mounts[@]}" "$base-amd64" sh -c \
        "python3 -m venv /tmp/pip && /tmp/pip/bin/python -m pip download -q --no-deps -d /tmp $probe") ||
        fail "no containers can be made here, or they reach no package index"
    # Up to here exit code 5 says what the machine lacks; afterwards every failure is an error.
    trap '[[ $? == 0 ]] || exit 1' EXIT
    BUILDER=$builder BASE_IMAGE=$base-amd64 RUN_IMAGE=$small-amd64 RUNTIME=onnx DEVICE_IMAGE=sieve-edge-device:amd64 \
        PLATFORM=linux/amd64 scripts/engine.sh image device
    "$python" -m tests.containers.make_toy "$work/inputs"
    build_here toy "$work/inputs/toy-cpu.yaml" "${quick[@]}"
    chown -R "$uid:$uid" "$work"
    validate toy amd64 "$work/inputs/toy-cpu.yaml" "${quick[@]}"
    compare toy amd64
    .venv/bin/sieve-edge bundle "$work/toy" --out "$work/toy.tar.gz" --image sieve-edge-device:bundle \
        --base sieve-edge-device:amd64 >"$work/toy-bundle.json"
    # Assigned first: of what stands in an argument, a failure is not seen.
    checked=$(in_image sieve-edge-device:bundle | tail -n 1)
    size=$(podman image inspect --format '{{.Size}}' sieve-edge-device:amd64)
    say "checked the bundle's image: $checked"
    say "device image: $size bytes; done in $SECONDS s"
}

prove_emulated() { # the pico build on an emulated arm64 device
    local root=${ARM64_ROOT:-/var/cache/sieve-edge/arm64-root} code=0
    docker/arm64-root.sh "$root"
    ARM64_ROOT=$root ARM64_RUN=$PWD/$work/toy .venv/bin/python -m pytest -q tests/device/test_arm64.py >&2 || code=$?
    umount -R "$root/proc"
    [[ $code == 0 ]] || { say "tests on an emulated device: exit $code"; exit 1; }
}

main() {
    check_tools qemu-aarch64-static update-binfmts ssh sshd
    [[ -x .venv/bin/pytest ]] || fail "pytest is missing in .venv; run: make setup"
    register_qemu
    mkdir -p "$work/inputs" "$work/cache"
    printf 'processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n' >"$work/cpuinfo"
    make_bases
    make_images
    # The uid in the containers is not the caller's here, to show that any will do.
    export XDG_CACHE_HOME=$PWD/$work/cache HF_HOME=$PWD/$work/cache/huggingface ENGINE=podman
    export ENGINE_ARGS="--user $uid:$uid --no-healthcheck ${ENGINE_ARGS:-}"
    mkdir -p "$XDG_CACHE_HOME/sieve-edge/container/packages" "$HF_HOME"
    chown -R "$uid:$uid" "$work"
    NETWORK=host scripts/engine.sh fetch
    # shellcheck disable=SC2086 # a list of words
    podman run --rm --read-only --tmpfs /tmp --network none --volume "$PWD:$PWD:ro" --volume "$PWD/$work:$PWD/$work" \
        --workdir "$PWD" --env PYTHONPATH="$PWD" $ENGINE_ARGS sieve-edge:cpu \
        python -m tests.containers.make_toy "$work/inputs"

    local builds=(toy)
    rm -f "$work"/*-reference.json
    build toy "$work/inputs/toy-cpu.yaml" "${quick[@]}"
    validate toy amd64 "$work/inputs/toy-cpu.yaml" "${quick[@]}"
    validate toy arm64 "$work/inputs/toy-cpu.yaml" "${quick[@]}"
    compare toy amd64
    compare toy arm64
    prove_emulated
    if [[ ${LLAMA_CPP:-none} == gguf ]]; then
        builds+=(toy-gguf)
        build toy-gguf "$work/inputs/toy-gguf.yaml" "${quick[@]}"
        validate toy-gguf gguf "$work/inputs/toy-gguf.yaml" "${quick[@]}"
    fi
    if [[ -n ${FULL:-} ]]; then
        builds+=(x86-cpu)
        # shellcheck disable=SC2086 # a list of words
        build x86-cpu x86-cpu ${FULL_ARGS:-}
        # shellcheck disable=SC2086 # a list of words
        validate x86-cpu amd64 x86-cpu ${FULL_ARGS:-}
        compare x86-cpu amd64
        compare x86-cpu arm64
    fi
    python3 docker/figures.py "$work" "$base-amd64" "$small" "${builds[@]}"
    say "done in $SECONDS s"
}

case ${1:-} in
    "") main ;;
    device) prove_device ;;
    *) say "unknown: $1"; exit 2 ;;
esac
