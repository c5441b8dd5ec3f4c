"""What a plan keeps, read from a projection bank without torch."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from sieve_edge.artifacts import PruningPlan
from sieve_edge.errors import ArtifactError
from sieve_edge.report.kept import kinds, mean_kept, read_kept
from sieve_edge.report.plan_figures import curves, error_told, heat_figure, shade
from tests.markup import read_page


def make_plan(ranks, storage="pair"):
    return PruningPlan("id", ranks, storage, 0.5, 0.5, 0.9, 0.9, 0.0, 0.0, "told", False, "uniform", 0, 1, 1)


def write_nested(folder, name, out_features, in_features, dtype=np.float32):
    most = min(out_features, in_features)
    errors = np.linspace(1.0, 0.0, most + 1)
    shapes = {"down": np.zeros((most, in_features), dtype), "up": np.zeros((most, out_features), dtype)}
    save_file({**shapes, "error": errors}, folder / f"{name}.safetensors")


def test_pairs_pivots_dense_and_skipped_matrices(tmp_path):
    for name in ("0.qkv", "0.o", "1.qkv", "1.o"):
        write_nested(tmp_path, name, 12, 8)
    ranks = {"1.o": 0, "0.o": 4, "0.qkv": 2, "1.qkv": None}
    pairs = {item.name: item for item in read_kept(tmp_path, make_plan(ranks))}
    assert list(pairs) == ["0.qkv", "0.o", "1.qkv", "1.o"]
    assert [pairs[name].kept for name in ("0.qkv", "0.o", "1.qkv", "1.o")] == pytest.approx([40 / 96, 80 / 96, 1, 0])
    pivoted = {item.name: item.kept for item in read_kept(tmp_path, make_plan(ranks, "pivoted"))}
    assert pivoted["0.o"] == pytest.approx((80 - 16) / 96)
    assert dict(pairs["0.o"].errors)[4] == 0.5
    assert pairs["0.o"].errors[0] == (0, 1.0)
    assert pairs["0.o"].errors[-1] == (8, 0.0)


def test_widths_count_inputs(tmp_path):
    write_nested(tmp_path, "0.down", 8, 16)
    [item] = read_kept(tmp_path, make_plan({"0.down": 4}, "width"))
    assert (item.kept, item.most) == (0.25, 16)


def test_a_bank_fitted_rank_by_rank(tmp_path):
    fits = {"down.2": np.zeros((2, 8)), "up.2": np.zeros((2, 12)), "error.2": np.array([0.25])}
    fits |= {"down.4": np.zeros((4, 8)), "up.4": np.zeros((4, 12)), "error.4": np.array([0.125])}
    save_file(fits, tmp_path / "0.qkv.safetensors")
    [item] = read_kept(tmp_path, make_plan({"0.qkv": 4}))
    assert item.errors == ((2, 0.25), (4, 0.125))
    assert item.kept == pytest.approx(80 / 96)
    assert "1.25e-01" in error_told(item)


def test_a_missing_matrix_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"0\.qkv\.safetensors: missing"):
        read_kept(tmp_path, make_plan({"0.qkv": 4}))


def test_means_count_each_matrix_alike(tmp_path):
    for name, shape in {"0.o": (8, 8), "0.down": (8, 32), "1.o": (8, 8), "1.down": (8, 32)}.items():
        write_nested(tmp_path, name, *shape)
    found = read_kept(tmp_path, make_plan({"0.o": None, "0.down": 0, "1.o": None, "1.down": None}))
    assert mean_kept(found, "layer") == {0: 0.5, 1: 1.0}
    assert mean_kept(found, "kind") == {"o": 1.0, "down": 0.5}
    assert kinds(found) == ["o", "down"]


def test_heat_map_marks_bottlenecks_and_wraps_many_layers(tmp_path):
    ranks = {f"{layer}.o": None if layer == 3 else 2 for layer in range(40)}
    for name in ranks:
        write_nested(tmp_path, name, 8, 8)
    matrices = read_kept(tmp_path, make_plan(ranks))
    page = read_page(heat_figure("heat", matrices, ["3.o"]))
    cells = [item for item in page.of("rect") if item.attributes["class"].startswith("heat")]
    assert len(cells) == 40
    [marked] = [item for item in cells if "bottleneck" in item.attributes["class"]]
    assert "3.o: 100.0% kept, dense, a bottleneck" in marked.text
    assert all(0 <= float(item.attributes["x"]) <= 360 - float(item.attributes["width"]) for item in cells)
    assert "Bottlenecks: 3.o." in page.by_id("heat-desc").text
    assert set(curves(matrices)["matrices"]) == set(ranks)


@pytest.mark.parametrize(("kept", "kind"), [(0.0, 0), (0.1, 0), (0.11, 1), (0.5, 2), (0.999, 4), (1.0, 5)])
def test_shades(kept, kind):
    assert shade(kept) == f"heat{kind}"
