"""What a user configures of a device, strict and checked before anything expensive.

Tasks are in task_config.py, everything else in recipe.py. Every field's description is the
reference for the YAML files.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Base of all configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(Strict):
    """What the artifact must meet on the device; a limit that is left out is not checked."""

    time_per_answer_ms: PositiveFloat | None = Field(
        None, description="Median milliseconds for one answer at the workload's prompt and answer lengths."
    )
    time_to_first_token_ms: PositiveFloat | None = Field(
        None, description="Median milliseconds from a prompt of the workload's length to its first token."
    )
    time_per_token_p95_ms: PositiveFloat | None = Field(
        None, description="95th percentile of milliseconds for one decode step."
    )
    peak_memory_mib: PositiveFloat | None = Field(
        None, description="Peak resident memory, in MiB, of a fresh process that answers one prompt."
    )
    file_size_mib: PositiveFloat | None = Field(None, description="Size of the artifact's weights and graph, in MiB.")


class Workload(Strict):
    """The lengths that are timed."""

    prompt_tokens: PositiveInt | None = Field(
        None, description="Prompt length in tokens; left out, the median of the task's test prompts."
    )
    decode_tokens: PositiveInt = Field(
        16, description="Tokens decoded one by one after the prompt, for the time per token."
    )
    repeats: Annotated[int, Field(ge=3)] = Field(
        20, description="Interleaved repeats of each timing, dense and pruned in turn, a count."
    )


class Connection(Strict):
    """How a device is reached: with the system's OpenSSH client, its configuration, and its known host keys."""

    ssh: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.:_-]*$")] = Field(
        description="USER@HOST, or a host of the OpenSSH client's configuration."
    )
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="TCP port, a number; left out, the OpenSSH client's."
    )
    identity: str | None = Field(None, description="File of the private key; left out, the OpenSSH client's.")
    known_hosts: Annotated[str, Field(pattern=r'^[^"\\\n]+$')] | None = Field(
        None, description="File of known host keys; left out, the OpenSSH client's. An unknown key is an error."
    )
    workdir: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/][A-Za-z0-9._/-]*$")] = Field(
        "sieve-edge", description="Folder on the device, from the home folder; what is put there is removed again."
    )
    python: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/][A-Za-z0-9._/-]*$")] = Field(
        "python3", description="Python 3.11 or newer on the device."
    )


_STORAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "onnx": {"onnxruntime": ("pair", "pivoted")},
    "gguf": {"llama.cpp": ("pair",), "llama.cpp-stock": ("width",)},
}
"""Format -> runtime -> how it can hold a pruned matrix."""


def _storages(format_: str, runtime: str) -> tuple[str, ...]:
    """Of a runtime that does not fit the format, those of the format, so that both problems are named at once."""
    of_format = _STORAGES[format_]
    return of_format.get(runtime) or tuple(storage for storages in of_format.values() for storage in storages)


_QUANTIZATIONS = {
    "onnx": ("F32", "F16", "int8", "int4"),
    "gguf": ("F32", "F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0"),
}
BITS = {"int4": 4, "int8": 8}
"""Quantization of a target -> bits of a weight that is stored in blocks."""

BLOCK = 32
"""Numbers that share a scale in int8 and int4 weights."""

_PLAIN = ("F32", "F16")
"""Quantizations whose ONNX graphs hold standard operators only."""


class Target(Strict):
    """One device: what runs there, how, and what it must meet."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] = Field(description="Name of the target.")
    description: str = Field(description="One line that says which device this is.")
    format: Literal["onnx", "gguf"] = Field(description="File format of the artifact.")
    runtime: Literal["onnxruntime", "llama.cpp", "llama.cpp-stock"] = Field(
        description="Runtime that loads the artifact on the device; llama.cpp with the patch for factored weights, or "
        "as it is (stock)."
    )
    quantization: Literal["F32", "F16", "int8", "int4", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0"] = Field(
        "F32",
        description="Type of the stored weights: F32, F16, int8 or int4 (blocks of 32) for onnx; F32, F16 or one of "
        "llama.cpp's mixtures for gguf.",
    )
    execution_provider: Literal["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"] = Field(
        "CPUExecutionProvider",
        description="ONNX Runtime execution provider; another one on the device is an error. TensorRT takes F32 and "
        "F16, whose files hold standard operators only, and leaves what it cannot run to CUDA.",
    )
    gpu_layers: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Layers that llama.cpp runs on the GPU, a count; 999 for all. A llama.cpp without one is an error.",
    )
    threads: PositiveInt = Field(description="Threads that the runtime may use, a count.")
    storage: Literal["pair", "pivoted", "width"] = Field(
        "pivoted",
        description="How a pruned matrix is stored: as two factors (pair), as these less what pivots make known "
        "(pivoted; not for int8 and int4), or dense with fewer channels and heads (width).",
    )
    rank_multiple: PositiveInt = Field(description="Ranks are rounded down to a multiple of this number, a count.")
    rank_multiple_reason: str = Field(description="Why this multiple suits the device.")
    workload: Workload = Field(default_factory=Workload, description="The lengths that are timed.")
    limits: Limits = Field(default_factory=Limits, description="What the artifact must meet.")
    connection: Connection | Literal["local"] | None = Field(
        None,
        description="How the device is reached: over ssh, or local if it is the machine that builds; left out, no "
        "device is at hand, and time limits are not verified.",
    )
    image: str | None = Field(
        None,
        description="Image that the device's container starts from, a Debian or Ubuntu for the device's kind of "
        "machine; left out, that of docker/device.Dockerfile.",
    )
    model: str = Field(description="Default model: a directory, a GGUF file, package:PATH or hf:ID.")
    task: str = Field(description="Default task: a shipped name or a YAML file.")

    @model_validator(mode="after")
    def _fits_together(self) -> "Target":
        allowed: dict[str, tuple[object, ...]] = {
            "runtime": tuple(_STORAGES[self.format]),
            "storage": _storages(self.format, self.runtime),
            "quantization": _QUANTIZATIONS[self.format],
            "execution_provider": (self.execution_provider,) if self.format == "onnx" else ("CPUExecutionProvider",),
            "gpu_layers": (self.gpu_layers,) if self.format == "gguf" else (0,),
        }
        if self.execution_provider == "TensorrtExecutionProvider":
            allowed["quantization"] = _PLAIN
        problems = [
            f"{name}: {getattr(self, name)}, must be {' or '.join(map(str, values))} for format {self.format} and "
            f"runtime {self.runtime}"
            for name, values in allowed.items()
            if getattr(self, name) not in values
        ]
        if self.storage == "pivoted" and self.quantization in BITS:
            problems.append(
                f"storage: pivoted, must be pair for quantization {self.quantization}: {BITS[self.quantization]} bits "
                "are too few for the coefficients of pivots"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def accelerated(self) -> bool:
        """Whether something else than the processor computes."""
        return self.execution_provider != "CPUExecutionProvider" or self.gpu_layers > 0
