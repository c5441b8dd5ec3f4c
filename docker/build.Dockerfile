# The pipeline: prunes, exports and validates. `make image` builds it, `make build` runs it.
#
#   BASE_IMAGE    Debian or Ubuntu with Python 3.11 or newer and its venv module
#   ACCELERATOR   cpu, or cuda: CUDA comes with the wheels of torch and onnxruntime-gpu, the driver from the host. llama.cpp
#                 is for the processor in both, which stands in for the device's GPU. The image for cuda was never made.
#   TORCH_INDEX   index of PyTorch's CPU builds; without it an x86-64 image for cpu holds CUDA too, several GB
#   LLAMA_CPP     gguf (llama.cpp that loads factored weights), gguf-stock (as it is) or none
#   NATIVE        ON compiles llama.cpp for the processor that builds the image, OFF for others like it too
#   JOBS          compilers at a time; empty for one a core
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 XDG_CACHE_HOME=/cache
WORKDIR /opt/sieve-edge
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ gcc git make && rm -rf /var/lib/apt/lists/*
# From what changes least to what changes most: the compiler's minutes are spent when llama.cpp's patch changes.
COPY constraints.txt ./
COPY docker/llama.cpp docker/llama.cpp
COPY scripts/runtime.sh scripts/
ARG LLAMA_CPP=gguf
ARG NATIVE=OFF
ARG JOBS=
RUN python3 -m venv /tmp/pip && export PYTHON=/tmp/pip/bin/python \
    && case $LLAMA_CPP in \
        gguf) scripts/runtime.sh ;; \
        gguf-stock) scripts/runtime.sh stock ;; \
        none) ;; \
        *) echo "LLAMA_CPP must be gguf, gguf-stock or none" >&2; exit 2 ;; \
    esac
COPY LICENSE README.md pyproject.toml demo-requirements.txt demo-rag-requirements.txt ./
COPY scripts/setup.sh scripts/
COPY sieve_edge/__init__.py sieve_edge/
ARG ACCELERATOR=cpu
ARG TORCH_INDEX=
RUN case $ACCELERATOR in \
        cpu) onnx="onnx" ;; \
        cuda) onnx="onnx-gpu" ;; \
        *) echo "ACCELERATOR must be cpu or cuda" >&2; exit 2 ;; \
    esac \
    && if [ "$LLAMA_CPP" = none ]; then llama_cpp=; else llama_cpp=$LLAMA_CPP; fi \
    && ACCELERATOR=cpu scripts/setup.sh torch "$onnx" ${llama_cpp:+"$llama_cpp"} tune data rouge judge serve
COPY targets targets
COPY sieve_edge sieve_edge

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="sieve-edge" \
      org.opencontainers.image.description="Prunes a language model to one task for one device, and validates it" \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=builder /opt/sieve-edge /opt/sieve-edge
# A caller's uid has no home and no name here. PYTHONSAFEPATH: a checkout that is mounted and entered is not imported.
ENV PATH=/opt/sieve-edge/.venv/bin:$PATH HOME=/tmp USER=sieve-edge PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/cache/packages HF_HOME=/cache/huggingface
USER 10001:10001
HEALTHCHECK --interval=5m --timeout=30s CMD ["sieve-edge", "--version"]
CMD ["sieve-edge", "--help"]
