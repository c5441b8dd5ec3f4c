"""Artifacts: what is truncated, changed or half written is seen before it is used."""

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sieve_edge.artifacts import MANIFEST, Manifest, describe_outputs, is_current, read_manifest, verify, write_manifest
from sieve_edge.errors import ArtifactError
from sieve_edge.files import append_jsonl, digest, read_json, read_jsonl, write_json


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    root = tmp_path / "fuse"
    (root / "nested").mkdir(parents=True)
    (root / "weights.bin").write_bytes(b"weights" * 100)
    (root / "nested" / "config.json").write_text("{}")
    manifest = Manifest(
        stage="fuse",
        key="k1",
        inputs={"search": "abc"},
        settings={"seed": 0},
        seed=0,
        versions={"torch": "0"},
        seconds=1.5,
        outputs=describe_outputs(root),
        metrics={"kept": 0.5},
        fallbacks=("0.qkv stays dense",),
    )
    write_manifest(root, manifest)
    return root


def test_a_whole_artifact_is_verified(artifact: Path) -> None:
    manifest = verify(artifact)
    assert manifest == read_manifest(artifact)
    assert set(manifest.outputs) == {"weights.bin", "nested/config.json"}
    assert manifest.fallbacks == ("0.qkv stays dense",)
    assert is_current(artifact, "k1")
    assert not is_current(artifact, "k2")


def test_a_truncated_file_is_refused(artifact: Path) -> None:
    (artifact / "weights.bin").write_bytes(b"weights")
    with pytest.raises(ArtifactError, match=r"weights\.bin: truncated, 7 bytes instead of 700; delete .*fuse and run"):
        verify(artifact)
    assert not is_current(artifact, "k1")


def test_a_changed_file_is_refused(artifact: Path) -> None:
    (artifact / "weights.bin").write_bytes(b"WEIGHTS" * 100)
    with pytest.raises(ArtifactError, match=r"weights\.bin: content differs from its manifest"):
        verify(artifact)


def test_a_missing_file_is_refused(artifact: Path) -> None:
    (artifact / "nested" / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"nested/config\.json: missing"):
        verify(artifact)
    assert not is_current(artifact, "k1")


def test_without_a_manifest_nothing_is_finished(artifact: Path) -> None:
    (artifact / MANIFEST).unlink()
    assert not is_current(artifact, "k1")
    with pytest.raises(ArtifactError, match=r"manifest\.json: missing; delete its folder"):
        verify(artifact)


@pytest.mark.parametrize(
    "content", ['{"stage": "fuse"', '{"stage": "fuse", "fallbacks": []}', '{"fallbacks": [], "x": 1}']
)
def test_a_manifest_of_another_shape_is_refused(artifact: Path, content: str) -> None:
    (artifact / MANIFEST).write_text(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: not "):
        verify(artifact)


def test_the_digest_does_not_depend_on_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_records_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_jsonl(path) == ([], False)
    for number in range(3):
        append_jsonl(path, {"number": number})
    assert read_jsonl(path) == ([{"number": 0}, {"number": 1}, {"number": 2}], False)


@pytest.mark.parametrize("torn", [b'{"number": 1', b'{"number": 1}', b'{"num\n'])
def test_a_torn_last_record_is_dropped_from_the_file(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"number": 0})
    with path.open("ab") as file:
        file.write(torn)
    assert read_jsonl(path) == ([{"number": 0}], True)
    append_jsonl(path, {"number": 2})
    assert read_jsonl(path) == ([{"number": 0}, {"number": 2}], False)


def test_a_broken_record_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(ArtifactError, match="line 2 is not JSON"):
        read_jsonl(path)
    assert path.read_text().count("\n") == 3


class FullDisk(io.StringIO):
    """A file on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def _fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return FullDisk() if "w" in mode or "a" in mode else real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"number": 1})
    with monkeypatch.context() as patch:
        _fill_the_disk(patch)
        with pytest.raises(ArtifactError) as caught:
            write_json(path, {"number": 2})
        with pytest.raises(ArtifactError, match="No space left on device"):
            append_jsonl(tmp_path / "log.jsonl", {"number": 2})
    message = str(caught.value)
    assert "\n" not in message
    assert f"{path}: cannot write (No space left on device, " in message
    assert "MiB free); free space there or choose another --run-dir; finished stages are kept" in message
    assert read_json(path) == {"number": 1}


def test_another_os_error_keeps_its_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "no" / "folder.json", {})


def test_json_is_written_the_same_way_twice(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5]})
    write_json(tmp_path / "b.json", {"a": [1.5], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5], "b": 1}
    assert not list(tmp_path.glob("*.part"))
