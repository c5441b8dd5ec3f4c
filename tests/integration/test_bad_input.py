"""Bad input ends in one line with the documented exit code, and loses nothing that was there."""

import json
import shutil

import pytest
import yaml

from tests.command import command

QUICK = ("--set", "calibration_tokens=600", "--set", "threads=1", "--set", "learn.fisher_prompts=16")


@pytest.fixture
def options(pico, toy_task, toy_target, tmp_path):
    def make(**changes):
        chosen = {
            "target": toy_target,
            "task": toy_task,
            "model": pico("llama"),
            "run-dir": tmp_path / "run",
            **changes,
        }
        return [word for name, value in chosen.items() for word in (f"--{name}", value)] + list(QUICK)

    return make


def one_line(done, code, *texts):
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in lines[0]


def changed_task(toy_task, tmp_path, **changes):
    task = yaml.safe_load(toy_task.read_text())
    task.update(changes)
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(task))
    return path


def source_task(toy_task, tmp_path, content):
    data = tmp_path / "data.csv"
    if content is not None:
        data.write_bytes(content)
    return changed_task(toy_task, tmp_path, source={"path": f"file:{data}"})


def test_unknown_target_and_task(options):
    one_line(command("build", *options(target="toaster")), 3, "toaster", "x86-cpu")
    one_line(command("build", *options(task="juggling")), 3, "juggling", "movie-sentiment")


def test_unknown_key_and_unit_are_told_at_once(options, toy_target, tmp_path):
    target = yaml.safe_load(toy_target.read_text())
    target.update({"threds": 4, "limits": {"time_per_answer_s": 1, "file_size_mib": -5}})
    path = tmp_path / "target.yaml"
    path.write_text(yaml.safe_dump(target))
    one_line(command("build", *options(target=path)), 3, "threds", "limits.time_per_answer_s", "limits.file_size_mib")


def test_bad_settings(options):
    words = [*options(), "--set", "tolerance=2", "--set", "colour=red"]
    one_line(command("build", *words), 3, "tolerance", "colour")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (None, ["data.csv", "file not found"]),
        (b"", ["the file is empty"]),
        (b"text,label\n\xff\xfe broken,0\n", ["not UTF-8"]),
        (b"words,label\na,0\n", ["no column ['text']", "words"]),
        (b"text,label\n" + b"".join(b"word%d,0\n" % row for row in range(600)), ["only the label"]),
        (b"text,label\ngood,0\nbad,9\n", ["label '9'", "line 3"]),
        (b"text,label\ngood,0\nbad,1\n", ["2 different usable texts", "500"]),
    ],
)
def test_bad_data(options, toy_task, tmp_path, content, texts):
    one_line(command("build", *options(task=source_task(toy_task, tmp_path, content))), 3, *texts)


def test_data_of_a_package_that_is_not_installed(options, toy_task, tmp_path):
    task = changed_task(toy_task, tmp_path, source={"path": "package:no_such_package/data.csv"})
    one_line(command("build", *options(task=task)), 5, "no_such_package", "make demo")


def test_model_directories(options, pico, tmp_path):
    one_line(command("build", *options(model=tmp_path / "nowhere")), 3, "nowhere", "not a directory")
    bare = tmp_path / "bare"
    bare.mkdir()
    one_line(command("build", *options(model=bare)), 3, "no config.json")
    cut = tmp_path / "cut"
    shutil.copytree(pico("llama"), cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    one_line(command("build", *options(model=cut)), 3, "cannot load it", "download")
    strange = tmp_path / "strange"
    shutil.copytree(pico("llama"), strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    one_line(command("build", *options(model=strange)), 3, "'opt'", "architectures/opt.json")


def test_too_few_calibration_tokens(options):
    words = [*options(), "--set", "calibration_tokens=10"]
    one_line(command("calibrate", *words), 3, "calibration_tokens 10", "32")
    words = [*options(), "--set", "calibration_tokens=10000000"]
    one_line(command("calibrate", *words), 3, "splits.calibration")


def test_a_task_that_the_dense_model_cannot_do_is_refused(options, toy_task, tmp_path):
    task = changed_task(
        toy_task, tmp_path, prompt="Nothing about it . {{ text }} the screen is", labels={"0": " it", "1": " of"}
    )
    data = yaml.safe_load(task.read_text())
    rows = [f"the film was it number{index} of,{index % 2}" for index in range(700)]
    (tmp_path / "noise.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    data["source"] = {"path": f"file:{tmp_path / 'noise.csv'}"}
    task.write_text(yaml.safe_dump(data))
    one_line(command("build", *options(task=task)), 3, "the score of always one label")


def test_usage_errors_exit_2():
    assert command("build").returncode == 2
    assert command("bild").returncode == 2


def test_a_full_disk_ends_in_one_line_and_keeps_finished_stages(options, tmp_path, pico):
    words = options()
    assert command("calibrate", *words).returncode == 0
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    limited = ["bash", "-c", 'ulimit -f 8; trap "" XFSZ; exec "$@"', "limited"]
    done = command("learn", *words, prefix=limited)
    one_line(done, 3, "cannot write", "finished stages are kept")
    assert all(path.is_file() for path in before)
    assert command("learn", *words).returncode == 0
