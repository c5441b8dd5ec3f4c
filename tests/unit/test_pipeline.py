"""What a build needs is asked for by the stages that are still to run, and before any of them does."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sieve_edge import STAGES, pipeline, resolve
from sieve_edge.errors import EnvironmentMissing
from sieve_edge.recipe import Recipe


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Runs a build with LoRA where peft is missing, all stages current but some; returns those that ran."""
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pipeline, "stage_settings", lambda verb, run: {})
    monkeypatch.setattr(pipeline, "read_manifest", lambda place: SimpleNamespace(outputs={}))
    monkeypatch.setattr(pipeline, "verify", lambda folder: None)
    monkeypatch.setattr(pipeline, "_link", lambda run, stage, place: None)
    progress = SimpleNamespace(stage=lambda *_: None)
    recipe = Recipe(tune={"method": "lora"})
    run = SimpleNamespace(root=tmp_path, folder=lambda verb: tmp_path / verb, recipe=recipe, progress=progress)
    run.judge = None

    def build(*stale):
        done = []
        monkeypatch.setattr(pipeline, "is_current", lambda place, key: Path(place).name.split("-")[0] not in stale)
        monkeypatch.setattr(pipeline, "_run_stage", lambda run, stage, *_: done.append(stage.verb))
        pipeline._run_stages(run, STAGES, {})
        return done

    return build


def test_a_tuned_build_is_validated_without_peft(ran):
    assert ran("validate") == ["validate"]
    assert ran("quantize", "export", "validate") == ["quantize", "export", "validate"]


@pytest.mark.parametrize("first", ["calibrate", "tune"])
def test_peft_is_asked_for_before_the_first_stage_that_runs(ran, first):
    with pytest.raises(EnvironmentMissing, match=r"peft is not installed; run: pip install 'sieve-edge\[tune\]'"):
        ran(first, "validate")
