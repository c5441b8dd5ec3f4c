#!/bin/sh
# Scores a sample of the test split on this device and compares it with what validation kept: exit code 0 if the answers
# agree, 4 if they drifted.
#
# PYTHON  Python that runs it (default: the one that install.sh noted, else python3)
# PYTHONPATH  where packages are that are not in the bundle, as in a device image
set -eu
cd "$(dirname "$0")"
python=python3
if [ -f .python ]; then python=$(cat .python); fi
PYTHONPATH=runner:site${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-$python}" -B -m sieve_edge.device.check .
