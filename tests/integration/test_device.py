import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import numpy as np
import psutil
import pytest

from sieve_edge.device.ort import OrtTextModel
from sieve_edge.device.process import run_worker
from sieve_edge.errors import ArtifactError, ConfigError, EnvironmentMissing, SieveError
from sieve_edge.task.likelihood import label_log_likelihoods
from tests.tiny_onnx import WORDS, build_graph, onnx, write_folder

CPU = {"runtime": "onnxruntime", "threads": 1, "provider": "CPUExecutionProvider"}
ANSWERS = [[WORDS.index("negative")], [WORDS.index("positive")]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    return {"dense": write_folder(root / "dense", work=40), "pruned": write_folder(root / "pruned")}


@pytest.fixture(scope="module")
def model(folders):
    return OrtTextModel(folders["dense"], 1)


def forward(model, ids, past=(), past_tokens=0, keep=0):
    ids = np.asarray(ids, dtype=np.int64)
    mask = np.ones((len(ids), past_tokens + ids.shape[1]), dtype=np.int64)
    positions = np.tile(np.arange(past_tokens, mask.shape[1]), (len(ids), 1))
    return model.forward(ids, mask, positions, past, keep)


def test_cached_steps_equal_one_pass(model):
    ids = np.random.default_rng(0).integers(0, len(WORDS), (3, 9))
    whole, _ = forward(model, ids)
    first, past = forward(model, ids[:, :5])
    rest, present = forward(model, ids[:, 5:], past, 5)
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), whole, atol=1e-5)
    assert [array.shape for array in present] == [(3, 1, 9, 8)] * 2


def test_last_logits_only(model):
    ids = [[1, 2, 7, 8]]
    whole, _ = forward(model, ids)
    last, _ = forward(model, ids, keep=1)
    assert last.shape == (1, 1, len(WORDS))
    np.testing.assert_allclose(last, whole[:, -1:], atol=1e-6)


def test_a_graph_without_the_optional_input_still_gives_the_last_logits(tmp_path):
    graph = build_graph()
    inputs = [item for item in graph.graph.input if item.name != "logits_to_keep"]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    onnx.save(graph, tmp_path / "model.onnx")
    plain = OrtTextModel(tmp_path, 1)
    assert forward(plain, [[1, 2, 3]], keep=1)[0].shape == (1, 1, len(WORDS))


def test_repeat_gives_every_row_the_same_past(model):
    _, past = forward(model, [[1, 2]])
    tails = [[6], [10]]
    batched, _ = forward(model, tails, model.repeat(past, 2), 2)
    alone = [forward(model, [tail], past, 2)[0] for tail in tails]
    np.testing.assert_allclose(batched, np.concatenate(alone), atol=1e-6)


def test_missing_provider_names_the_extra(folders):
    with pytest.raises(EnvironmentMissing, match=r"no CUDAExecutionProvider.*sieve-edge\[onnx-gpu\]"):
        OrtTextModel(folders["dense"], 1, "CUDAExecutionProvider")


def test_broken_graphs_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"model.onnx: missing"):
        OrtTextModel(tmp_path, 1)
    whole = build_graph().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="onnxruntime cannot load it"):
        OrtTextModel(tmp_path, 1)
    renamed = onnx.ModelProto.FromString(whole.replace(b"present.0.value", b"present.7.value"))
    onnx.save(renamed, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"missing \['present.0.value'\]"):
        OrtTextModel(tmp_path, 1)


def test_worker_scores_as_this_process_does(folders, model):
    prompts = [list(np.random.default_rng(n).integers(0, 10, 3 + n % 5)) for n in range(30)]
    prompts = [[int(token) for token in prompt] for prompt in prompts]
    ticks = []
    job = {"job": "score", "folder": str(folders["dense"]), "prompts": prompts, "answers": ANSWERS, "batch_tokens": 16}
    result = run_worker({**CPU, **job}, ticks.append)
    expected = label_log_likelihoods(model, prompts, ANSWERS, 16)
    np.testing.assert_allclose(result["answers"], expected, atol=1e-6)
    assert sum(ticks) == 30
    assert len(ticks) > 1


def test_results_and_jobs_larger_than_a_pipe_pass(folders):
    prompts = [[1, 2, 6, 3, 2]] * 8000
    job = {"job": "score", "folder": str(folders["pruned"]), "prompts": prompts, "answers": ANSWERS}
    assert len(run_worker({**CPU, **job, "batch_tokens": 5})["answers"]) == 8000


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({}, "worker job: Unable to extract tag"),
        ({"job": "sing"}, "'sing' found using 'job' does not match any of the expected tags"),
        ({"job": "memory", **CPU}, "memory.folder Field required; worker job: memory.prompt Field required"),
        ({"job": "reference", "folder": "x", "threads": 0, "provider": "c"}, "reference.threads Input should be gr"),
        ({"job": "reference", "folder": "x", **CPU, "speed": 1}, "reference.speed Extra inputs are not permitted"),
        ({"job": "reference", "folder": "/nowhere", "exact": True, **CPU}, "/nowhere/reference.npz: not a reference"),
    ],
)
def test_worker_refuses_bad_jobs_in_one_line(job, message):
    with pytest.raises(SieveError, match=r"^[^\n]*$") as caught:
        run_worker(job)
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def test_worker_refuses_what_is_not_json():
    command = [sys.executable, "-m", "sieve_edge.device.worker"]
    done = subprocess.run(command, input="{", capture_output=True, text=True, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == result["exit_code"] == ConfigError.exit_code
    assert "Invalid JSON" in result["error"]
    assert done.stderr == ""


def test_missing_environment_comes_back_as_itself(folders):
    cuda = {**CPU, "provider": "CUDAExecutionProvider"}
    job = {"job": "reference", "folder": str(folders["dense"]), "exact": True, **cuda}
    with pytest.raises(EnvironmentMissing, match=r"onnx-gpu"):
        run_worker(job)


def test_a_crash_is_an_artifact_error_with_the_last_line(folders):
    job = {"job": "memory", "folder": str(folders["dense"]), "prompt": [9999], "answer_tokens": 1}
    with pytest.raises(ArtifactError, match=r"worker for 'memory' of .*dense died \(exit 1\): .*out of data bounds"):
        run_worker({**CPU, **job})


def test_scores_that_are_not_finite_are_refused(tmp_path):
    folder = write_folder(tmp_path / "broken")
    onnx.save(build_graph(bias=float("nan")), folder / "model.onnx")
    job = {"job": "score", "folder": str(folder), "prompts": [[1, 2]], "answers": ANSWERS, "batch_tokens": 8}
    with pytest.raises(SieveError, match="2 of 2 label scores are not finite"):
        run_worker({**CPU, **job})
    with pytest.raises(SieveError, match="a logit of the reference inputs is not finite"):
        run_worker({**CPU, "job": "reference", "exact": True, "folder": str(folder)})


def test_memory_is_the_workers_own(folders):
    ballast = np.ones(60 << 20)  # 480 MiB here must not show there
    job = {"job": "memory", "folder": str(folders["dense"]), "prompt": [1, 2, 3], "answer_tokens": 2}
    result = run_worker({**CPU, **job})
    assert ballast.nbytes / 2**20 == 480
    assert 10 < result["baseline_mib"] < result["peak_mib"] < 250


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupting_the_parent_or_killing_the_worker_leaves_no_process(folders, signal_sent):
    script = """
        import json, sys
        from sieve_edge.device.process import run_worker
        from sieve_edge.errors import ArtifactError
        try:
            run_worker(json.loads(sys.argv[1]), lambda units: print(units, flush=True))
        except ArtifactError as error:
            print(error)
    """
    job = {"job": "time", "folders": {"dense": str(folders["dense"])}, "prompts": {"dense": [1, 2]}, "answer_tokens": 1}
    job |= {"decode_tokens": 2, "repeats": 10**7, "seed": 0, **CPU}
    command = [sys.executable, "-c", textwrap.dedent(script), json.dumps(job)]
    # A shell's background job ignores Ctrl-C, and its children inherit that.
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    parent = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore,  # noqa: PLW1509 (no threads yet)
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "1\n"
    (worker,) = psutil.Process(parent.pid).children()
    # Ctrl-C reaches the parent; a lack of memory kills the worker.
    os.kill(parent.pid if signal_sent == signal.SIGINT else worker.pid, signal_sent)
    output, errors = parent.communicate(timeout=20)
    wait_for(lambda: not worker.is_running())
    if signal_sent == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
    else:
        assert "worker for 'time' of " in output
        assert "killed by SIGKILL; out of memory?" in output
