#!/bin/sh
# Makes this bundle ready on the device: nothing to do if its packages came along, which are for one kind of machine and
# one version of Python, else a virtual environment. A factored GGUF file needs the llama.cpp that make runtime builds,
# and so a Python that has it. .python says which Python check.sh takes.
#
# PYTHON  Python 3.11 or newer (default: python3)
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install: $python must be Python 3.11 or newer; set PYTHON" >&2
    exit 5
}
python=$("$python" -c 'import sys; print(sys.executable)')
runtime=$("$python" -c 'import json; print(json.load(open("bundle.json"))["runtime"]["runtime"])')
if [ "$runtime" = llama.cpp ]; then
    # No package index has it: what pip installs does not load the file.
    found=$(PYTHONPATH=runner "$python" -B -c '
import sieve_edge.device.worker
from sieve_edge.device.llama import runtime
from sieve_edge.device.llama_refusals import PATCHED
version = runtime().__version__
print("it" if PATCHED in version else f"llama-cpp-python {version}, which does not load it")' 2>&1 | tail -n 1)
    if [ "$found" != it ]; then
        echo "install: $python has no llama.cpp for this factored file ($found); on this device, in a checkout of" \
            "sieve-edge, run: make runtime; then here: PYTHON=CHECKOUT/.venv/bin/python ./install.sh" >&2
        exit 5
    fi
    echo "install: llama.cpp for factored files is in $python" >&2
elif [ -d site ]; then
    wanted=$("$python" -c '
import json
print("{machine} and Python {python}".format(**json.load(open("bundle.json"))["site"]))')
    found=$("$python" -c '
import platform
print(platform.machine(), "and Python", platform.python_version().rpartition(".")[0])')
    if [ "$found" != "$wanted" ]; then
        echo "install: the packages in this bundle are for $wanted, this is $found ($python); set PYTHON to one that" \
            "they are for, or pack the bundle for this machine, or without --machine" >&2
        exit 5
    fi
    echo "install: packages came with the bundle" >&2
elif "$python" -m venv .venv && .venv/bin/python -m pip install -q -r requirements.txt; then
    python=.venv/bin/python
    echo "install: packages are in .venv" >&2
else
    echo "install: cannot install requirements.txt with $python" >&2
    exit 5
fi
echo "$python" >.python
