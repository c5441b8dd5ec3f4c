"""Gathers what docker/prove.sh made into benchmarks/results/containers.json; needs nothing but Python and podman."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MIB = 2**20
GGUF_BUILD = "toy-gguf"


def main() -> None:
    """Write the figures: ``figures.py WORK BASE SMALL BUILD...``."""
    work, base, small, *builds = sys.argv[1:]
    llama_cpp = GGUF_BUILD in builds
    images = [
        _image("pipeline with llama.cpp" if llama_cpp else "pipeline", "amd64", "sieve-edge:cpu", base),
        *(_image("device", arch, f"sieve-edge-device:{arch}", f"{small}-{arch}") for arch in ("amd64", "arm64")),
    ]
    if llama_cpp:
        images.append(_image("device with llama.cpp", "amd64", "sieve-edge-device:gguf", f"{small}-amd64"))
    found = {
        "benchmark": "containers",
        "machine": {"processor": platform.processor() or platform.machine(), "system": platform.platform()},
        "images": images,
        "builds": [_build(Path(work) / name) for name in builds],
        "devices": [
            _device(Path(work), name, tag)
            for name in builds
            for tag in (("gguf",) if name == GGUF_BUILD else ("amd64", "arm64"))
        ],
    }
    file = ROOT / "benchmarks" / "results" / "containers.json"
    file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _image(name: str, arch: str, image: str, base: str) -> dict[str, Any]:
    sizes = [_inspect(each, "{{.Size}}") for each in (image, base)]
    found = {"image": name, "arch": arch, "MiB": int(sizes[0]) / MIB, "base MiB": int(sizes[1]) / MIB}
    if _inspect(image, "{{.Architecture}}") != arch:
        sys.exit(f"{image} is not for {arch}")
    return found


def _inspect(image: str, form: str) -> str:
    command = ["podman", "image", "inspect", "--format", form, image]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _build(run: Path) -> dict[str, Any]:
    result = _read(run / "result.json")
    return {
        "build": run.name,
        "command": result["command"],
        "passed": result["passed"],
        "kept": result["kept_fraction"]["linears"],
        "missed": [check["name"] for check in result["checks"] if not check["passed"]],
        "seconds": sum(result["seconds"].values()),
    }


def _device(work: Path, name: str, tag: str) -> dict[str, Any]:
    """Say what validate found in the device's image, and how near the stored logits are."""
    folder = work / f"{name}-{tag}" / "validate"
    compared = work / f"{name}-{tag}-reference.json"
    arch = "arm64" if tag == "arm64" else "amd64"
    found: dict[str, Any] = {"build": name, "arch": arch, "emulated": arch != "amd64", "validated": folder.is_dir()}
    if folder.is_dir():
        report = _read(folder / "report.json")
        found["seconds"] = _read(folder / "manifest.json")["seconds"]
        found["test accuracy"] = _test_accuracy(report)
        found["in the build"] = _test_accuracy(_read(work / name / "validate" / "report.json"))
        found["largest logit difference"] = report["max_logit_difference"]
        found["missed"] = [check["name"] for check in report["checks"] if not check["passed"]]
    if compared.is_file():
        found["largest logit difference"] = _read(compared)["max_difference"]
    return found


def _test_accuracy(report: Any) -> Any:
    return report["accuracy"]["pruned"]["test"]["corrected"]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
