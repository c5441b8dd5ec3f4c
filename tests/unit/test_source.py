"""What a finished build asks of its model, where nothing but validate is left to do: no torch, no transformers."""

import json
import sys
from dataclasses import replace

import pytest
from huggingface_hub import constants

from sieve_edge import run as runs
from sieve_edge.artifacts import Manifest, describe_outputs, write_manifest
from sieve_edge.errors import EnvironmentMissing, ModelError
from sieve_edge.files import digest
from sieve_edge.model.source import ModelSource, find_model
from sieve_edge.progress import Progress
from sieve_edge.protocols import Chat
from sieve_edge.recipe import Recipe
from sieve_edge.resolve import load_target, load_task
from sieve_edge.run import Run, stage_settings
from sieve_edge.task_config import Message

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHAT = {"template": "{{ messages }}", "start": "<s>", "end": "</s>", "adds_start": True}


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    for name in ("torch", "transformers", "gguf", "sieve_edge.model.load"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's client out of reach of the hub, with a model in its cache."""
    kept = tmp_path / "hub" / "models--some--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    (kept / "snapshots" / COMMIT).mkdir(parents=True)
    (kept / "snapshots" / COMMIT / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_hub_model_is_known_by_its_commit(hub):
    assert find_model("hf:some/model").sha256() == digest({"hub": "some/model", "commit": COMMIT})


def test_a_hub_model_that_is_not_there_is_one_line(hub):
    with pytest.raises(ModelError, match="model 'hf:some/other': cannot read its configuration") as caught:
        find_model("hf:some/other").sha256()
    assert "\n" not in str(caught.value)


def test_without_the_hubs_client_its_models_are_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for ask in (ModelSource.sha256, ModelSource.facts):
        with pytest.raises(EnvironmentMissing, match="run: pip install huggingface_hub"):
            ask(find_model("hf:some/model"))


def make_run(root, **recipe):
    (root / "model.gguf").write_bytes(b"weights")
    task = load_task("movie-sentiment").model_copy(update={"messages": (Message(role="user", content="{{ text }}"),)})
    target = load_target("x86-cpu")
    return Run(find_model(str(root / "model.gguf")), task, target, Recipe(**recipe), root / "run", Progress())


def test_chats_are_written_as_fuse_noted_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_splits", lambda task, seed, chat: chat)
    run = make_run(tmp_path)
    run.folder("fuse").mkdir(parents=True)
    (run.folder("fuse") / "sieve_edge.json").write_text(json.dumps({"chat": CHAT}))
    outputs = describe_outputs(run.folder("fuse"))
    inputs = {"model": run.source.sha256()}
    write_manifest(run.folder("fuse"), Manifest("fuse", "key", inputs, {}, 0, {}, 1.0, outputs))
    assert run.splits == Chat(**CHAT)
    (tmp_path / "model.gguf").write_bytes(b"others")
    with pytest.raises(ModuleNotFoundError):
        _ = Run(run.source, run.task, run.target, run.recipe, run.root, run.progress).splits


def test_the_key_of_gradient_projections_follows_what_decides_their_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "scored_splits", {})
    run = make_run(tmp_path, learn={"method": "gradient"})
    asked = {"grid": list(run.recipe.grid), "storage": "pivoted", "multiple": run.target.rank_multiple, "skip": False}
    assert stage_settings("learn", run)["ranks"] == asked
    skipping = make_run(tmp_path, learn={"method": "gradient"}, search={"allow_skip": True})
    assert stage_settings("learn", skipping)["ranks"] == asked | {"skip": True}
    assert stage_settings("learn", make_run(tmp_path))["ranks"] == {}


def test_a_search_with_limits_of_time_follows_what_times_depend_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "scored_splits", {})
    for limits, follows in (({"max_time_per_token_ms": 5.0}, True), ({}, False)):
        run = make_run(tmp_path, search=limits)
        before = stage_settings("search", run)
        for other in ({"format": "gguf"}, {"runtime": "llama.cpp"}, {"connection": None}, {"threads": 7}):
            there = replace(run, target=run.target.model_copy(update=other))
            assert (stage_settings("search", there) != before) == follows


def test_stages_that_a_model_is_not_loaded_for_have_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "splits", {})
    run = make_run(tmp_path, learn={"method": "gradient"}, tune={"method": "lora"}, vocabulary={"keep": "auto"})
    for verb in runs._SETTINGS:
        assert stage_settings(verb, run)
