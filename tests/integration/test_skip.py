"""Plans that leave whole blocks out: the same function in every form, from the search's model to ONNX Runtime."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from sieve_edge.artifacts import PruningPlan, read_manifest, read_plan
from sieve_edge.errors import ArtifactError
from sieve_edge.export.check import check_folder
from sieve_edge.export.to_onnx import write_graph
from sieve_edge.export.weights import parameters_of
from sieve_edge.files import read_json, read_jsonl
from sieve_edge.fuse import fuse, install_plan_
from sieve_edge.model.bank import ProjectionBank, write_nested
from sieve_edge.model.checkpoint import load_checkpoint
from sieve_edge.model.levels import SKIPPED, factored_params, kept_params
from sieve_edge.model.load import load_model, shared_copy
from sieve_edge.model.matrices import count_params, linear_params, stacked_weight
from sieve_edge.model.source import find_model
from sieve_edge.model.switchable import install_switchable_, switch_
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.resolve import load_task
from sieve_edge.search.space import plan_id
from sieve_edge.task.examiner import Examiner
from sieve_edge.task.examples import load_splits
from tests.command import command
from tests.pico import make_model, make_tokenizer

FAMILIES = ("llama", "qwen2", "phi3", "gemma3_text", "gpt2")
# Of the first layer the attention, of the second the MLP; of the others some are factored and one is dense.
RANKS = {
    "0.qkv": SKIPPED,
    "0.o": SKIPPED,
    "0.gate_up": 12,
    "0.down": 8,
    "1.qkv": 10,
    "1.o": None,
    "1.gate_up": SKIPPED,
    "1.down": SKIPPED,
}
PROMPTS = [[5, 9, 11, 3, 8, 60, 41, 7, 2, 59, 12, 33], [4, 17, 23], [50, 51, 52, 53, 54, 55, 56, 57]]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Function from a family to its dense model and a bank of plain singular vectors."""
    made = {}

    def find(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            model = make_model(family)
            for parameter in model.parameters():
                # Biases and norms that are not 0 and 1, so that a lost or left one shows.
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(folder / "model")
            make_tokenizer().save_pretrained(folder / "model")
            loaded = load_model(find_model(str(folder / "model")), "cpu")
            (folder / "bank").mkdir()
            for spec in loaded.specs:
                up_OR, scale_R, down_RI = torch.linalg.svd(stacked_weight(loaded.model, spec), full_matrices=False)
                errors = torch.zeros(len(scale_R) + 1)
                write_nested(
                    folder / "bank", spec.name, down_RI, (up_OR * scale_R).T, errors, 1.0, found_rank=len(scale_R)
                )
            made[family] = loaded, ProjectionBank(folder / "bank")
        return made[family]

    return find


def logits(model, prompt=PROMPTS[0]):
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits


def expected_model(loaded, bank):
    """Make the dense model that the plan stands for: products in place of factors, nothing out of skipped blocks."""
    model = copy.deepcopy(loaded.model)
    for spec in loaded.specs:
        rank = RANKS[spec.name]
        if rank is None:
            continue
        down_RI, up_RO = bank.at(spec.name, rank)
        parts = (up_RO.T @ down_RI).split(spec.part_features)
        for path, weight_OI in zip(spec.paths, parts, strict=True):
            module = model.get_submodule(path)
            if rank == SKIPPED:
                # What a block computes inside does not matter, only that nothing leaves it.
                if spec.kind in ("o", "down"):
                    for parameter in module.parameters():
                        parameter.zero_()
            else:
                module.weight.copy_(weight_OI.T if isinstance(module, Conv1D) else weight_OI)
    return model


def fused_model(loaded, bank, storage):
    model = shared_copy(loaded.model)
    install_plan_(model, loaded.specs, bank, RANKS, storage)
    return model


@pytest.mark.parametrize("storage", ["pair", "pivoted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_skipped_block_adds_nothing_and_stores_nothing(dense, family, storage):
    loaded, bank = dense(family)
    model = fused_model(loaded, bank, storage)
    torch.testing.assert_close(logits(model), logits(expected_model(loaded, bank)), rtol=0, atol=1e-3)
    switchable = shared_copy(loaded.model)
    leaders = install_switchable_(switchable, loaded.specs, bank)
    switch_(leaders, RANKS)
    torch.testing.assert_close(logits(switchable), logits(model), rtol=0, atol=1e-5)
    formula = count_params(loaded.model)
    for spec in loaded.specs:
        rank = RANKS[spec.name]
        if rank is not None:
            formula -= spec.params - factored_params(rank, spec.out_features, spec.in_features, storage)
        if rank == SKIPPED:
            biases = [loaded.model.get_submodule(path).bias for path in spec.paths]
            formula -= sum(bias.numel() for bias in biases if bias is not None)
    assert count_params(model) == formula


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_and_the_exported_graph_are_the_fused_model(dense, family, toy_task, tmp_path):
    loaded, bank = dense(family)
    task = load_task(str(toy_task))
    selection = load_splits(task, 0)["selection"]
    plan = PruningPlan(
        id=plan_id(RANKS),
        ranks=RANKS,
        storage="pivoted",
        kept_linears=0.5,
        kept_model=0.5,
        accuracy=0.9,
        dense_accuracy=0.9,
        loss=0.0,
        loss_bound=0.0,
        accept="",
        refit=False,
        strategy="guided",
        seed=0,
        evaluations=1,
        tokens_scored=1,
    )
    answers = np.random.default_rng(0).normal(size=(len(selection), 2)).tolist()
    checkpoint, exported = tmp_path / "checkpoint", tmp_path / "exported"
    # The stage counts parameters, saves, reloads and compares bit by bit.
    metrics, fallbacks = fuse(loaded, bank, plan, answers, Examiner(task), selection, Recipe(), checkpoint, Progress())
    assert fallbacks == ()
    model, reloaded = fused_model(loaded, bank, "pivoted"), load_checkpoint(checkpoint, "cpu")
    assert torch.equal(logits(reloaded), logits(model))
    assert metrics["params"] == count_params(model) == count_params(reloaded)
    exported.mkdir()
    write_graph(reloaded, exported)
    # Whole prompts, then padded on the left, then token by token on the cache.
    assert check_folder(reloaded, PROMPTS, exported) < 1e-4
    assert not computing(exported, loaded.specs, RANKS)
    assert computing(
        exported, loaded.specs, {name: None if rank == SKIPPED else SKIPPED for name, rank in RANKS.items()}
    )


def computing(folder, specs, ranks):
    """List the operators of an exported graph that compute anything inside a skipped block, but for moving zeros."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    operators = ("MatMul", "Gemm", "Softmax", "Sigmoid", "Tanh", "Erf")
    nodes = [node.name for node in graph.node if node.op_type in operators]
    # For example ".0/self_attn/", of the path "model.layers.0.self_attn.q_proj".
    blocks = [".{}/{}/".format(*spec.paths[0].split(".")[-3:-1]) for spec in specs if ranks[spec.name] == SKIPPED]
    return [name for name in nodes if any(block in name for block in blocks)]


@pytest.mark.parametrize("kinds", [("qkv", "o"), ("qkv", "o", "gate_up", "down")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_any_attention_is_exported_too(dense, family, kinds, tmp_path):
    loaded, bank = dense(family)
    ranks = {spec.name: SKIPPED if spec.kind in kinds else None for spec in loaded.specs}
    model = shared_copy(loaded.model)
    install_plan_(model, loaded.specs, bank, ranks, "pair")
    write_graph(model, tmp_path)
    assert check_folder(model, PROMPTS, tmp_path) < 1e-4
    assert not computing(tmp_path, loaded.specs, ranks)
    names = [item.name for item in onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).get_inputs()]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]


def test_only_what_a_skipped_block_would_read_may_be_missing_from_the_graph(dense, tmp_path):
    loaded, bank = dense("llama")
    model = shared_copy(loaded.model)
    install_plan_(model, loaded.specs, bank, RANKS, "pair")
    write_graph(model, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    stored = {tensor.name.removesuffix(".transposed") for tensor in graph.initializer}
    unread = {"model.layers.0.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight"}
    assert set(parameters_of(model)) - stored == unread
    model.model.register_parameter("unused", torch.nn.Parameter(torch.zeros(4), requires_grad=False))
    with pytest.raises(ArtifactError, match=r"1 weights .* model\.unused is missing"):
        write_graph(model, tmp_path)


@pytest.fixture(scope="module")
def run(pico, toy_task, toy_target, tmp_path_factory):
    """Function that runs a command with blocks that may be skipped, and returns its folder."""
    root = tmp_path_factory.mktemp("skip")

    def call(verb, name, *settings):
        quick = ("calibration_tokens=2000", "threads=1", "learn.fisher_prompts=64", "search.part=50")
        words = ["--target", toy_target, "--task", toy_task, "--model", pico("llama"), "--run-dir", root / name]
        for setting in (*quick, "search.allow_skip=true", "tolerance=0.4", *settings):
            words += ["--set", setting]
        done = command(verb, *words)
        assert done.returncode == 0, done.stderr
        return root / name

    return call


def check_plan(folder, pico):
    """Check that a plan skips blocks as a whole and that its size is the formula's; return its ranks."""
    plan = read_plan(folder / "search")
    specs = load_model(find_model(str(pico("llama"))), "cpu").specs
    assert set(plan.ranks) == {spec.name for spec in specs}
    for layer in (0, 1):
        for first, second in (("qkv", "o"), ("gate_up", "down")):
            assert (plan.ranks[f"{layer}.{first}"] == SKIPPED) == (plan.ranks[f"{layer}.{second}"] == SKIPPED)
    assert plan.kept_linears == pytest.approx(kept_params(specs, plan.ranks, plan.storage) / linear_params(specs))
    assert plan.loss_bound <= 0.4
    return plan.ranks


def test_the_guided_search_skips_a_block_and_its_plan_is_exported(run, pico):
    # With such a grid only a plan that skips is much smaller than the model.
    folder = run("export", "guided", "grid=[1.0, 0.9]")
    ranks = check_plan(folder, pico)
    assert SKIPPED in ranks.values()
    layout = read_json(folder / "fuse" / "config.json")["layout"]
    assert {name for name, entry in layout.items() if entry["rank"] == SKIPPED} == {
        name for name, rank in ranks.items() if rank == SKIPPED
    }
    assert read_manifest(folder / "export").metrics["max_logit_difference"]["pruned"] < 5e-3


def test_the_genetic_search_draws_plans_that_skip(run, pico):
    settings = ("strategy=genetic", "genetic.population=14", "genetic.patience=2", "genetic.mutation_probability=0.1")
    folder = run("search", "genetic", *(f"search.{setting}" for setting in settings))
    check_plan(folder, pico)
    scored, _ = read_jsonl(folder / "search" / "history.jsonl")
    assert any(SKIPPED in record["ranks"].values() for record in scored)
