#!/usr/bin/env bash
# Says of a target what decides where its build runs and what that needs: one line, RUNTIME ACCELERATOR CONNECTION IMAGE
# NAME.
#
#   scripts/target.sh TARGET     a shipped name or a YAML file
#
# RUNTIME      extra of pyproject.toml: onnx, onnx-gpu, gguf or gguf-stock
# ACCELERATOR  cuda if an NVIDIA GPU computes on the device, else cpu
# CONNECTION   local, ssh or none
# IMAGE        base of the device's container, or none
# NAME         its name, which folders of its runs end in; that of the file where it has none
#
# Reads YAML by lines, since it runs before anything is installed: fields at the left margin, values quoted or not, on
# their line or indented below. What is no target gives defaults; sieve-edge names its problems.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

file=targets/${1:?usage: scripts/target.sh TARGET}.yaml
if [[ ! -f $file ]]; then file=$1; fi
if [[ ! -f $file ]]; then file=/dev/null; fi

field() { # NAME: its value, without quotes and comments
    awk -v name="$1" '
        /^[^ \t#]/ { inside = 0 }
        $0 ~ "^[\"\047]?" name "[\"\047]?[ \t]*:" { inside = 1; sub(/^[^:]*:/, "") }
        inside { sub(/(^|[ \t])#.*/, ""); gsub(/["\047\r]/, "") }
        inside && NF { $1 = $1; printf "%s%s", (said++ ? " " : ""), $0 }
    ' "$file"
}

accelerator=cpu connection=none runtime=onnx
case "$(field connection)" in *ssh:*) connection=ssh ;; local) connection=local ;; esac
if [[ $(field execution_provider) == @(CUDA|Tensorrt)* || $(field gpu_layers) == [1-9]* ]]; then accelerator=cuda; fi
if [[ $(field format) == gguf ]]; then
    runtime=gguf
    if [[ $(field runtime) == llama.cpp-stock ]]; then runtime=gguf-stock; fi
elif [[ $accelerator == cuda && $connection == local ]]; then
    # Elsewhere this machine stands in with its processor, or the device brings its own.
    runtime=onnx-gpu
fi
image=$(field image)
if [[ -z $image || $image == @(null|~) ]]; then image=none; fi
name=$(field name) given=${1##*/}
echo "$runtime $accelerator $connection $image ${name:-${given%.yaml}}"
