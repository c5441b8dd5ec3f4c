#!/usr/bin/env bash
# Builds llama-cpp-python with a llama.cpp that loads factored weights, once per machine, and prints the wheel's path.
#
#   scripts/runtime.sh          with the patch
#   scripts/runtime.sh stock    as it is, with the same options
#
# PYTHON   interpreter with pip that builds it (default: .venv/bin/python)
# NATIVE   ON (default) uses every instruction of this processor; OFF for a wheel that must run on others
# ACCELERATOR  cuda builds for NVIDIA GPUs, with the CUDA toolkit that is installed; CUDA_ARCHITECTURES names them, e.g.
#          87 for Jetson Orin (default: those of this machine); cpu (default) for none
# JOBS     compilers at a time (default: as many as there are cores)
#
# The wheel lies under ${XDG_CACHE_HOME:-~/.cache}/sieve-edge/runtime, in a folder named after the hash of the source,
# the patches, the options and, for NATIVE=ON, the processor.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

readonly variant=${1:-factored}
readonly python=${PYTHON:-.venv/bin/python} native=${NATIVE:-ON} patches=docker/llama.cpp
# Virtual machines show AMX and fault on its first instruction, so it stays out.
readonly no_amx='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'
options="-DGGML_NATIVE=$native -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF \
-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF"
case ${ACCELERATOR:-cpu} in
    cpu) ;;
    cuda) options+=" -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES:-native}" ;;
    *) printf "runtime: ACCELERATOR '%s' must be cpu or cuda\n" "$ACCELERATOR" >&2; exit 5 ;;
esac
if [[ $(uname -m) == x86_64 ]]; then options+=" '-DCMAKE_C_FLAGS=$no_amx' '-DCMAKE_CXX_FLAGS=$no_amx'"; fi
readonly options

say() { printf 'runtime: %s\n' "$*" >&2; }
fail() { say "$*"; exit 5; }

processor() { # what NATIVE=ON depends on
    uname -m
    # A processor whose file names no flags is told apart by uname alone.
    if [[ $native == ON ]]; then grep -m1 -E '^(flags|Features)' /proc/cpuinfo || true; fi
}

key() {
    {
        if [[ $variant == stock ]]; then echo stock; fi
        cat $patches/requirement.txt $patches/*.patch
        grep '^scikit_build_core==' constraints.txt
        echo "$options"
        processor
    } | sha256sum | cut -c1-16
}

apply() { # PATCH FOLDER [OPTION]: exactly, or not at all
    git -C "$2" apply -p1 ${3:-} "$PWD/$patches/$1" >&2 \
        || fail "$1 does not fit this source; it is made for $(grep -o '^llama.*[^ \\]' $patches/requirement.txt)"
}

build() ( # FOLDER: leaves one wheel there; a subshell, so that its trap is its own
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    say "fetching the source"
    "$python" -m pip download -qq --no-deps --no-binary llama-cpp-python --require-hashes -r $patches/requirement.txt -d "$work/sdist" >&2
    tar -xzf "$work"/sdist/*.tar.gz -C "$work"
    source=$(compgen -G "$work/llama_cpp_python-*")
    # Inside a repository git takes a patch's paths from its root, and passes over those that lie elsewhere.
    rm -rf "$source/.git" "$source/vendor/llama.cpp/.git"
    export GIT_CEILING_DIRECTORIES=$work
    if [[ $variant == stock ]]; then
        apply sdist.patch "$source" --include=CMakeLists.txt
    else
        apply sdist.patch "$source"
        apply factored-weights.patch "$source/vendor/llama.cpp"
        grep -q fac_b.weight "$source/vendor/llama.cpp/src/llama-model.cpp" || fail "the patch changed nothing"
    fi
    cp $patches/LICENSE "$source/llama_cpp/LICENSE.llama.cpp"
    say "compiling llama.cpp, minutes"
    PIP_CONSTRAINT=$PWD/constraints.txt CMAKE_ARGS=$options CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)} \
        "$python" -m pip wheel -qq --no-deps -w "$1" "$source" >&2
)

make_wheel() ( # FOLDER: makes the folder with its wheel; a subshell, so that its trap is its own
    for tool in cmake gcc g++ git; do
        command -v "$tool" >/dev/null || fail "$tool is missing; on Debian: apt-get install cmake gcc g++ git"
    done
    mkdir -p "${1%/*}"
    # Made beside its place under a name of its own, and moved there whole: an interrupted build leaves nothing that looks
    # finished, and two at a time do not disturb each other.
    making=$(mktemp -d "${1%/*}/making.XXXXXX")
    trap 'rm -rf "$making"' EXIT
    chmod 755 "$making"
    build "$making"
    # Of two that built the same, the first one's stays.
    mv -T "$making" "$1" 2>/dev/null || compgen -G "$1/*.whl" >/dev/null || fail "$1 is there without a wheel; delete it"
)

main() {
    local cache folder wheel
    [[ $variant == factored || $variant == stock ]] || fail "'$variant' must be stock, or left out"
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/sieve-edge/runtime
    folder=$cache/$(key)
    if ! wheel=$(compgen -G "$folder/*.whl"); then
        make_wheel "$folder"
        wheel=$(compgen -G "$folder/*.whl")
        say "built in $SECONDS s: $wheel"
    fi
    echo "$wheel"
}

# Sourced, it only defines what tests call.
[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
