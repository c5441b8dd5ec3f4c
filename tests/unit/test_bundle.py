"""Bundles of a made-up run: what is refused, what makes their bytes differ, and install.sh."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sieve_edge.artifacts import MANIFEST, Manifest, describe_outputs, write_manifest
from sieve_edge.device import bundle
from sieve_edge.device.bundle import SCRIPTS, write_bundle
from sieve_edge.device.runner import site_files
from sieve_edge.errors import ArtifactError
from sieve_edge.files import digest
from sieve_edge.resolve import load_target, settings_json


def finish(folder, inputs, settings):
    outputs = describe_outputs(folder)
    write_manifest(folder, Manifest(folder.name, "key", inputs, settings, 0, {}, 1.0, outputs))
    return {folder.name: digest(outputs)}


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "runs" / "toy"
    for file in ("export/pruned/model.onnx", "validate/sample.json"):
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text("{}")
    exported = finish(root / "export", {}, {})
    finish(root / "validate", exported, {"target": settings_json(load_target("x86-cpu"))})
    return root


def names(archive):
    with tarfile.open(archive) as packed:
        return {name.partition("/")[2] for name in packed.getnames()}


def test_what_was_not_validated_is_not_shipped(run, tmp_path):
    write_bundle(run, tmp_path / "first.tar.gz", None, tmp_path)
    (run / "export" / "pruned" / "model.onnx").write_text("another one")
    (run / "export" / MANIFEST).unlink()
    finish(run / "export", {}, {})
    with pytest.raises(ArtifactError, match="toy: export was made again and not validated since; run the command"):
        write_bundle(run, tmp_path / "second.tar.gz", None, tmp_path)
    assert not (tmp_path / "second.tar.gz").exists()


def make_site(folder, python):
    """What pip leaves, with the Python that ran it in a command and in its hash."""
    files = {
        "numpy/__init__.py": "",
        "numpy/__pycache__/__init__.pyc": python,
        "numpy/RECORD": "of numpy's own",
        "numpy-2.0.dist-info/METADATA": "Version: 2.0",
        "numpy-2.0.dist-info/RECORD": f"../../bin/f2py,sha256={digest(python)}",
        "numpy-2.0.dist-info/INSTALLER": "pip" if "a" in python else "uv",
        "numpy-2.0.dist-info/REQUESTED": "",
        "bin/f2py": f"#!{python}",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_packages_inside_do_not_tell_who_collected_them(run, tmp_path, monkeypatch):
    made = []
    for name, python in (("one", "/a/.venv/bin/python"), ("two", "/other/python")):
        site = make_site(tmp_path / name, python)
        monkeypatch.setattr(bundle, "make_site", lambda *_, site=site, **__: site)
        made.append(write_bundle(run, tmp_path / name / "toy.tar.gz", "aarch64", tmp_path))
    assert made[0]["sha256"] == made[1]["sha256"]
    kept = {"numpy/__init__.py", "numpy/RECORD", "numpy-2.0.dist-info/METADATA"}
    assert {name.removeprefix("site/") for name in names(made[0]["bundle"]) if name.startswith("site/")} == kept
    assert set(site_files(make_site(tmp_path / "three", "/a/python"))) == kept


def install(folder, python, runtime, llama="", site=None):
    """Run install.sh of an unpacked bundle, with a llama_cpp that the device would have, or packages for a machine."""
    folder.mkdir()
    for script in SCRIPTS.glob("*.sh"):
        shutil.copy(script, folder)
    (folder / "bundle.json").write_text(json.dumps({"runtime": {"runtime": runtime}, "site": site}))
    if site:
        (folder / "site").mkdir()
    (folder / "runner").mkdir()
    (folder / "runner" / "sieve_edge").symlink_to(Path(bundle.__file__).parents[1])
    (folder / "runner" / "llama_cpp.py").write_text(llama)
    environment = {**os.environ, "PYTHON": str(python)}
    return subprocess.run([folder / "install.sh"], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("llama", "problem"),
    [
        ("__version__ = '0.3.36'", "llama-cpp-python 0.3.36, which does not load it"),
        ("raise ImportError('none here')", "llama-cpp-python cannot be imported (none here)"),
    ],
)
def test_a_factored_file_is_not_installed_without_its_llama_cpp(llama, problem, tmp_path):
    done = install(tmp_path / "there", sys.executable, "llama.cpp", llama)
    assert done.returncode == 5
    assert problem in done.stderr
    assert "run: make runtime; then here: PYTHON=CHECKOUT/.venv/bin/python ./install.sh" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "there" / ".venv").exists()


@pytest.mark.timeout(120)
def test_a_llama_cpp_that_is_there_is_used_by_the_check_too(tmp_path):
    done = install(tmp_path / "there", sys.executable, "llama.cpp", "__version__ = '0.3.36+factored.1'")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / ".python").read_text().strip() == sys.executable
    (tmp_path / "there" / "bundle.json").write_text('{"sha256": {"gone": ""}}')
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"} | {"PATH": "/usr/bin:/bin"}
    command = [tmp_path / "there" / "check.sh"]
    checked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 3
    assert "gone: missing, or not what was bundled" in checked.stderr


HERE = {"machine": platform.machine(), "python": ".".join(map(str, sys.version_info[:2]))}


def test_packages_inside_say_what_they_are_for(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "make_site", lambda *_, **__: make_site(tmp_path / "site", "/a/python"))
    for machine, site in (("aarch64", {"machine": "aarch64", "python": "3.11"}), (None, None)):
        write_bundle(run, tmp_path / "toy.tar.gz", machine, tmp_path)
        with tarfile.open(tmp_path / "toy.tar.gz") as packed:
            assert json.load(packed.extractfile("toy/bundle.json"))["site"] == site


@pytest.mark.timeout(120)
@pytest.mark.parametrize("other", [{}, {"machine": "riscv64"}, {"python": "3.99"}])
def test_packages_are_not_installed_where_they_are_not_for(other, tmp_path):
    done = install(tmp_path / "there", sys.executable, "onnxruntime", site=HERE | other)
    assert done.returncode == (5 if other else 0), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "there" / ".python").exists() != bool(other)
    if other:
        wanted, found = ("{machine} and Python {python}".format(**each) for each in (HERE | other, HERE))
        assert f"are for {wanted}, this is {found} ({sys.executable}); set PYTHON" in done.stderr
