"""What the device's side says of the machine it is on."""

import io
import json
import os
from types import SimpleNamespace

import pytest

from sieve_edge.device import agent


def test_only_what_slows_a_processor_is_throttling(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "THERMAL", tmp_path)
    monkeypatch.setattr(agent, "CPUS", tmp_path / "none")
    monkeypatch.setenv("PATH", "")
    devices = [
        ("pwm-fan", "2"),
        ("Fan", "1"),
        ("thermal-cpufreq-0", "3"),
        ("cpufreq-cpu0", "0"),
        ("Processor", "7"),
        ("intel_powerclamp", "-1"),
        ("dimm", ""),
    ]
    for index, (kind, state) in enumerate(devices):
        device = tmp_path / f"cooling_device{index}"
        device.mkdir()
        (device / "type").write_text(kind + "\n")
        (device / "cur_state").write_text(state + "\n")
    assert agent.facts()["throttled"] == {"cooling_device2 thermal-cpufreq-0": "3", "cooling_device4 Processor": "7"}


def test_what_does_not_end_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(agent, "_at_work", lambda folder: [12345678])
    monkeypatch.setattr(agent.os, "kill", lambda process, signal: None)
    monkeypatch.setattr(agent, "_ENDING_SECONDS", 0.0)
    request = json.dumps({"kind": "listing", "folder": str(tmp_path), "files": []}).encode()
    (tmp_path / agent.CREATED).write_text(str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(request + b"\n")))
    assert agent.main() == 0
    assert json.loads(capsys.readouterr().out) == {
        "error": "processes of an earlier request do not end: [12345678]; end them there, or restart the device"
    }


@pytest.mark.parametrize(("own", "behind"), [("/opt/packages", ["/opt/packages"]), ("", []), (None, [])])
def test_the_worker_finds_what_the_devices_python_finds(own, behind, tmp_path, monkeypatch):
    if own is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", own)
    worked = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(agent.subprocess, "run", lambda *_, env, **__: worked.append(env["PYTHONPATH"]) or done)
    assert agent.work({"folder": str(tmp_path), "paths": ["runner", "site"]}, io.BytesIO()) == 0
    assert worked == [os.pathsep.join([f"{tmp_path}/runner", f"{tmp_path}/site", *behind])]
