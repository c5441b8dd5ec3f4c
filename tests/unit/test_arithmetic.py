"""Tuning's arithmetic: bfloat16 where the processor has it, and the same to the end once a training has begun."""

import pytest
import torch

from sieve_edge.tune.arithmetic import has_bfloat16, settle

# As torch tells them, with one that does not matter here.
X86 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}
ARM = {"architecture": "aarch64", "neon": True, "bf16": False, "sve_bf16": False}


def processor(monkeypatch, *flags, known=X86):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known | dict.fromkeys(flags, True), raising=False)


@pytest.mark.parametrize(
    ("flags", "chosen"), [((), "float32"), (("avx512_bf16",), "bfloat16"), (("amx_bf16",), "bfloat16")]
)
def test_auto_takes_what_the_processor_has(monkeypatch, tmp_path, flags, chosen):
    processor(monkeypatch, *flags)
    assert settle("auto", "cpu", tmp_path) == chosen


@pytest.mark.parametrize(("flags", "chosen"), [((), "float32"), (("bf16",), "bfloat16")])
def test_arm_has_a_name_of_its_own_for_it(monkeypatch, tmp_path, flags, chosen):
    processor(monkeypatch, *flags, known=ARM)
    assert settle("auto", "cpu", tmp_path) == chosen


def test_a_torch_whose_products_do_not_use_it_counts_as_without(monkeypatch):
    processor(monkeypatch, "bf16", known=ARM)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16("cpu")


def test_a_training_that_another_processor_goes_on_with_stays_as_it_began(monkeypatch, tmp_path):
    processor(monkeypatch, "avx512_bf16")
    assert settle("auto", "cpu", tmp_path) == "bfloat16"
    processor(monkeypatch)
    assert settle("auto", "cpu", tmp_path) == "bfloat16"


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_what_is_asked_for_is_taken_anywhere(monkeypatch, tmp_path, wanted):
    processor(monkeypatch)
    assert settle(wanted, "cpu", tmp_path) == wanted
    assert list(tmp_path.iterdir()) == []


def test_devices_that_say_nothing_count_as_without(monkeypatch):
    processor(monkeypatch, "avx512_bf16")
    assert not has_bfloat16("mps")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bfloat16("cpu")


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_is_asked_itself(monkeypatch, there):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda name: asked.append(name) or torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there and not including_emulation)
    assert has_bfloat16("cuda:1") is there
    assert asked == ["cuda:1"]
