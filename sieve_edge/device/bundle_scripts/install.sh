#!/bin/sh
# Makes this bundle ready on the device: nothing to do if its packages came along, else a virtual environment.
#
# PYTHON  Python 3.11 or newer (default: python3)
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install: $python must be Python 3.11 or newer; set PYTHON" >&2
    exit 5
}
if [ -d site ]; then
    echo "install: packages came with the bundle" >&2
elif "$python" -m venv .venv && .venv/bin/python -m pip install -q -r requirements.txt; then
    echo "install: packages are in .venv" >&2
else
    echo "install: cannot install requirements.txt; llama.cpp for factored files comes from: make runtime" >&2
    exit 5
fi
