# The device: a runtime, and what scores and times a build in it. No torch, no compiler, no pip.
#
#   podman run -i IMAGE                              one job for sieve_edge.device.worker, JSON on standard input
#   podman run IMAGE sieve_edge.cli validate ...     any command that needs no torch
#
#   BASE_IMAGE   Debian or Ubuntu with Python and its venv module, for building
#   RUN_IMAGE    what the image adds to: Python PYTHON_VERSION and libstdc++; for gguf libgomp too
#   RUNTIME      onnx, gguf (llama.cpp that loads factored weights, compiled here) or gguf-stock (as it is)
#   ACCELERATOR  cpu, or cuda: llama.cpp for NVIDIA GPUs, where both images hold the CUDA toolkit, as NVIDIA's JetPack
#                does; not for onnx. Never made or run: no such device was at hand
#   CUDA_ARCHITECTURES  that it is compiled for; 87 is Jetson Orin. No GPU is seen while an image is made
#   NATIVE, JOBS as in build.Dockerfile
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG RUN_IMAGE=${BASE_IMAGE}

# On the device's platform, since llama.cpp has no wheel for it; does nothing for onnx.
FROM ${BASE_IMAGE} AS wheels
WORKDIR /src
COPY constraints.txt ./
COPY docker/llama.cpp docker/llama.cpp
COPY scripts/runtime.sh scripts/
ARG RUNTIME=onnx
ARG ACCELERATOR=cpu
ARG CUDA_ARCHITECTURES=87
ARG NATIVE=OFF
ARG JOBS=
# hadolint ignore=DL3008,DL3015
RUN set -eu; mkdir /wheels; \
    case $RUNTIME in onnx) exit ;; gguf) variant= ;; gguf-stock) variant=stock ;; *) echo "RUNTIME must be onnx, gguf or gguf-stock" >&2; exit 2 ;; esac; \
    apt-get update; apt-get install -y --no-install-recommends cmake g++ gcc git make; rm -rf /var/lib/apt/lists/*; \
    python3 -m venv /tmp/pip; cp "$(PYTHON=/tmp/pip/bin/python scripts/runtime.sh $variant)" /wheels/

# On the platform that builds: wheels for another one are only unpacked.
FROM --platform=${BUILDPLATFORM} ${BASE_IMAGE} AS site
ENV PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY targets targets
COPY sieve_edge sieve_edge
COPY --from=wheels /wheels /wheels
ARG RUNTIME=onnx
ARG PYTHON_VERSION=3.11
ARG TARGETARCH
RUN case $TARGETARCH in \
        amd64) machine=x86_64 ;; \
        arm64) machine=aarch64 ;; \
        *) echo "no wheels for $TARGETARCH" >&2; exit 2 ;; \
    esac \
    && python3 -m venv /tmp/pip \
    && /tmp/pip/bin/python -m pip install -q "$(grep '^setuptools==' constraints.txt)" \
    && /tmp/pip/bin/python -m pip install -q --no-compile --no-build-isolation --only-binary=:all: \
        --python-version "$PYTHON_VERSION" --platform "linux_$machine" --platform "manylinux2014_$machine" \
        --platform "manylinux_2_27_$machine" --platform "manylinux_2_28_$machine" \
        -c constraints.txt --find-links /wheels --target /opt/sieve-edge ".[${RUNTIME%-stock}]"
# tokenizers asks for a client of the hub, and packages carry tests and tools: nothing here imports them. Nor is there
# bytecode, which would start a worker sooner and take space.
WORKDIR /opt/sieve-edge
RUN rm -rf bin include share huggingface_hub* hf_xet* \
        onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
    && find . -depth -type d -name tests -exec rm -r {} +

# Named, since buildah would go on with the platform before.
# hadolint ignore=DL3065
FROM --platform=${TARGETPLATFORM} ${RUN_IMAGE}
LABEL org.opencontainers.image.title="sieve-edge-device" \
      org.opencontainers.image.description="Scores and times on the device what sieve-edge built, without torch" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=site /opt/sieve-edge /opt/sieve-edge
ARG RUNTIME=onnx
ENV PYTHONPATH=/opt/sieve-edge:/cache/packages HOME=/tmp PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 \
    SIEVE_EDGE_RUNTIME=${RUNTIME}
USER 10001:10001
HEALTHCHECK --interval=5m --timeout=60s \
    CMD ["python3", "-c", "import os; __import__('onnxruntime' if os.environ['SIEVE_EDGE_RUNTIME'] == 'onnx' else 'llama_cpp')"]
ENTRYPOINT ["python3", "-m"]
CMD ["sieve_edge.device.worker"]
