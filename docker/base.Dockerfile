# What device.Dockerfile starts from where a target names an image: that image, with Python 3.11 if it has none so new.
# NVIDIA's JetPack 6 is Ubuntu 22.04, whose own Python is 3.10. Never made: no such device was at hand.
#
#   BASE_IMAGE   the target's image, a Debian or Ubuntu
ARG BASE_IMAGE=ubuntu:22.04
FROM ${BASE_IMAGE}
# hadolint ignore=DL3008
RUN if python3 -B -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; then exit; fi; \
    apt-get update && apt-get install -y --no-install-recommends python3.11 python3.11-venv \
    && rm -rf /var/lib/apt/lists/* && ln -s /usr/bin/python3.11 /usr/local/bin/python3
