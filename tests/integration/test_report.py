"""The report of a real build: page, terminal, scripts, several builds, model card; one pico build for all tests."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import yaml
from safetensors import safe_open

from sieve_edge.artifacts import read_manifest, read_plan, verify
from sieve_edge.files import read_json, read_jsonl, write_json
from sieve_edge.report.kept import read_kept
from sieve_edge.report.search_figures import front_of
from tests.command import ENVIRONMENT, command, last_json
from tests.markup import check_page, forget

SECTIONS = ("verdict", "stages", "accuracy", "time", "size", "kept", "search", "errors", "differences", "run")


@pytest.fixture(scope="module")
def run(pico, toy_task, toy_target, tmp_path_factory):
    """Folder of a build whose model has a card with a licence."""
    root = tmp_path_factory.mktemp("report")
    model = shutil.copytree(pico("llama"), root / "model")
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A pico model\n")
    folder = root / "runs" / "pico"
    quick = ("calibration_tokens=1500", "threads=1", "learn.fisher_prompts=64", "search.front=true")
    settings = [word for item in quick for word in ("--set", item)]
    done = command(
        "build", "--target", toy_target, "--task", toy_task, "--model", model, "--run-dir", folder, *settings
    )
    assert done.returncode in (0, 4), done.stderr
    assert last_json(done)["page"] == str(folder / "report.html")
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the build that a test may change."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="module")
def page(run):
    return check_page((run / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_every_section_and_starts_with_the_verdict(page, run):
    headings = [item for item in page.elements if item.tag == "h2"]
    assert tuple(item.attributes["id"] for item in headings) == SECTIONS
    result = read_json(run / "result.json")
    verdict = next(item for item in page.elements if "verdict" in item.attributes.get("class", "").split())
    assert verdict.text.startswith("Passed." if result["passed"] else "Missed: ")
    body = page.of("main")[0].text
    for check in result["checks"]:
        assert check["name"] in body
    assert result["command"] in body


def test_every_figure_is_there_and_tells_what_it_shows(page, run):
    drawn = {item.attributes["id"] for item in page.of("svg")}
    assert drawn >= {"steps", "scores", "losses", "parts", "heat", "layers", "kinds", "front", "progress", "error"}
    assert drawn >= {"answer", "token", "divergence"}
    accuracy = read_json(run / "result.json")["accuracy"]["pruned"]["test"]["corrected"]
    assert f"pruned on test: {accuracy:.3f}" in page.by_id("scores-desc").text
    plan = read_json(run / "search" / "plan.json")
    assert f"Fused: {plan['kept_linears']:.1%} at {plan['accuracy']:.3f}" in page.by_id("front-desc").text
    cells = [item for item in page.of("rect") if re.match(r"heat\d", item.attributes["class"])]
    assert len(cells) == len(plan["ranks"])


def test_what_the_search_scored_is_recorded_and_agrees_with_the_front(run):
    scored = read_json(run / "search" / "scored.json")
    plan, front = (read_json(run / "search" / f"{name}.json") for name in ("plan", "front"))
    records, _ = read_jsonl(run / "search" / "history.jsonl")
    known = {(item["plan"], item["rung"]): item for item in records}
    assert len(scored) == plan["evaluations"]
    for item in scored:
        assert known[item["plan"], item["rung"]]["kept_linears"] == item["kept_linears"]
    assert [item["plan"] for item in front_of(scored)] == [item["id"] for item in reversed(front)]


def test_the_sizes_of_the_parts_sum_to_the_weights(page, run):
    told = page.by_id("parts-desc").text
    found = [float(size) for size in re.findall(r"pruned: ([\d.]+) MiB", told)]
    facts = last_json(command("inspect", run / "export" / "pruned"))
    assert sum(found) == pytest.approx(sum(facts["parts"].values()), abs=0.05 * len(found))


def test_the_curves_hold_every_matrix_and_its_rank(page, run):
    known = json.loads(page.by_id("curves").text)
    plan = read_json(run / "search" / "plan.json")
    assert {name: item["rank"] for name, item in known["matrices"].items()} == plan["ranks"]
    assert {item.text for item in page.of("option")} == set(plan["ranks"])
    for item in known["matrices"].values():
        errors = [error for _, error in item["points"]]
        assert errors[0] == pytest.approx(0.0, abs=1e-3), "at rank 0 all is lost"
        assert errors == sorted(errors, reverse=True)


def test_kept_fractions_of_the_matrices_sum_to_the_plan_s(run):
    plan = read_plan(run / "search")
    kept = whole = 0.0
    for item in read_kept(run / "learn", plan):
        with safe_open(run / "learn" / f"{item.name}.safetensors", framework="numpy") as bank:
            params = bank.get_slice("down").get_shape()[1] * bank.get_slice("up").get_shape()[1]
        kept, whole = kept + item.kept * params, whole + params
    assert kept / whole == pytest.approx(plan.kept_linears)


def test_examples_on_which_the_models_differ_are_shown_with_both_answers(page, run):
    found = read_json(run / "validate" / "differences.json")
    shown = page.of("article")
    assert len(shown) == min(found["differing"], 10)
    assert found["better"] + found["worse"] == found["differing"], "of two labels one is right"
    for article, example in zip(shown, found["examples"], strict=True):
        assert example["text"] in article.text
        assert example["dense"]["said"] != example["pruned"]["said"]


def test_the_page_says_what_was_run(page, run):
    body = page.of("main")[0].text
    manifests = {verb: read_manifest(run / verb) for verb in ("calibrate", "search", "export", "validate")}
    for manifest in manifests.values():
        assert manifest.key[:16] in body
    assert manifests["calibrate"].inputs["model"] in body
    weights = manifests["export"].outputs["pruned/model.onnx.data"]
    assert weights["sha256"] in body
    for package, version in manifests["validate"].versions.items():
        assert package in body
        assert version in body
    assert "Off in this build: tune, vocabulary." in body


def test_markdown_is_report_md_and_json_is_the_result(run):
    done = command("report", run, "--markdown")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (run / "report.md").read_text(encoding="utf-8")
    documents = last_json(command("report", run, "--json"))
    assert documents == {"runs": [{"run": str(run), **read_json(run / "result.json")}]}


def test_the_terminal_shows_the_same_figures(run):
    done = command("report", run)
    assert done.returncode == 0, done.stderr
    result = read_json(run / "result.json")
    for text in ("toy-sentiment on toy-cpu", "loss_test", f"{result['loss']['test']:.2%}", "pruned, transfer"):
        assert text in done.stdout
    assert "|" not in done.stdout


def test_several_builds_are_compared_in_one_page(run, copy, tmp_path):
    manifest = read_json(copy / "validate" / "manifest.json")
    manifest["settings"]["tolerance"] = 0.1
    write_json(copy / "validate" / "manifest.json", manifest)
    out = tmp_path / "both.html"
    done = command("report", run, copy, "--out", out, "--markdown")
    assert done.returncode == 0, done.stderr
    assert "| tolerance (validate) | 0.05 | 0.1 |" in done.stdout
    assert "|  | pico | copy |" in done.stdout
    assert done.stdout.count("sieve-edge build") == 2
    page = check_page(out.read_text(encoding="utf-8"))
    drawn = {item.attributes["id"] for item in page.of("svg")}
    assert {"heat-1", "heat-2", "scores-test", "scores-transfer"} <= drawn
    assert len(last_json(command("report", run, copy, "--json"))["runs"]) == 2


def test_an_older_build_s_page_says_what_was_not_recorded(copy, tmp_path):
    sha256 = forget(copy, "search", "scored.json")
    forget(copy, "validate", "differences.json")
    manifest = read_json(copy / "validate" / "manifest.json")
    manifest["inputs"]["search"] = sha256
    write_json(copy / "validate" / "manifest.json", manifest)
    result = read_json(copy / "result.json")
    write_json(
        copy / "result.json", {name: value for name, value in result.items() if name not in ("device", "validated_on")}
    )
    done = command("report", copy, "--out", tmp_path / "old.html", "--json")
    assert done.returncode == 0, done.stderr
    page = check_page((tmp_path / "old.html").read_text(encoding="utf-8"))
    told = page.of("main")[0].text
    assert told.count("This build did not record") == 2
    assert "did not record the machine" in told
    assert not {"front", "progress"} & {item.attributes["id"] for item in page.of("svg")}
    assert page.of("article") == []


def test_unfinished_and_mixed_builds_are_refused(copy, tmp_path):
    done = command("report", tmp_path)
    assert (done.returncode, "not a finished build" in done.stderr) == (3, True)
    assert command("report", copy, "--json", "--markdown").returncode == 2
    forget(copy, "search", "scored.json")
    done = command("report", copy)
    assert done.returncode == 3
    assert "search was run again and not validated since" in done.stderr
    (copy / "export" / "manifest.json").unlink()
    assert "export/manifest.json is missing" in command("card", copy).stderr


def test_the_card_carries_the_licence_and_the_results(copy):
    done = command("card", copy)
    assert done.returncode == 0, done.stderr
    told = last_json(done)
    assert (told["license"], told["base_model"]) == ("apache-2.0", None)
    assert "--base-model adds it" in done.stderr
    text = (copy / "export" / "pruned" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "apache-2.0"
    assert "base_model" not in header
    result = read_json(copy / "result.json")
    [index] = header["model-index"]
    measured = {item["dataset"]["split"]: item["metrics"] for item in index["results"]}
    assert measured["test"][0]["type"] == "balanced_accuracy"
    assert measured["test"][0]["value"] == round(result["accuracy"]["pruned"]["test"]["corrected"], 4)
    for part in ("Limits of use", "onnxruntime", "optimum", "Text: {{ text }} Sentiment:", result["command"]):
        assert part in text
    prior = read_json(copy / "export" / "pruned" / "sieve_edge.json")["prior"]["pruned"][1]
    assert f"| 1 | ' good' | {prior:.4f} |" in text
    verify(copy / "export")  # The card changes nothing that a build checks.
    named = command("card", copy, "--base-model", "some/model")
    assert last_json(named)["base_model"] == "some/model"
    assert "base_model: some/model" in (copy / "export" / "pruned" / "README.md").read_text(encoding="utf-8")


def test_neither_torch_nor_transformers_is_imported(run, tmp_path):
    script = """
        import sys
        from pathlib import Path
        from sieve_edge.report.card import write_card
        from sieve_edge.report.compare import report_page
        from sieve_edge.report.record import RunRecord
        assert report_page([RunRecord.read(Path(sys.argv[1]))])
        print(sorted({"torch", "transformers", "matplotlib"} & set(sys.modules)))
    """
    words = [sys.executable, "-c", textwrap.dedent(script), run]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_chromium_shows_the_page_without_errors_or_overflow(tab, run, theme, width):
    heard = tab.open(run / "report.html", width, theme)
    own = (run / "report.html").resolve().as_uri()
    asked = [item["params"]["request"]["url"] for item in heard if item["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {own}, "nothing else is fetched"
    assert [item for item in heard if item["method"] != "Network.requestWillBeSent"] == [], "nothing is complained of"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.missing_images() == 0
    assert tab.figures_outside() == []
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (theme == "light")


def test_texts_stay_inside_their_figures(tab, run):
    tab.open(run / "report.html")
    assert tab.texts_outside() == []


def test_a_comparison_fits_a_phone(tab, run, copy, tmp_path):
    out = tmp_path / "both.html"
    assert command("report", run, copy, "--out", out, "--json").returncode == 0
    heard = tab.open(out)
    assert {item["method"] for item in heard} == {"Network.requestWillBeSent"}
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.figures_outside() == tab.texts_outside() == []


def test_another_matrix_can_be_chosen(tab, run):
    tab.open(run / "report.html")
    known = "[...document.querySelectorAll('#matrix option')].map(option => option.value)"
    names = tab.evaluate(known)
    told = []
    for name in names:
        change = f"matrix.value = '{name}'; matrix.dispatchEvent(new Event('change'));"
        tab.evaluate(change)
        told.append(tab.evaluate("document.getElementById('error-told').textContent"))
        points = tab.evaluate("document.querySelector('#error .curve').getAttribute('points')")
        assert len(points.split()) > 2
        assert "NaN" not in points
    assert [text.split(":")[0].split(" ")[0] for text in told] == names


def test_the_keyboard_reaches_things_in_the_order_of_the_page(tab, run):
    tab.open(run / "report.html")
    reached = []
    for _ in range(min(tab.focusable(), 25)):
        tab.press_tab()
        reached.append(tab.focused())
    assert reached == list(range(len(reached)))
    tab.open(run / "report.html")
    tab.press_tab()
    skip = "document.activeElement.className + ' ' + (document.activeElement.getBoundingClientRect().top >= 0)"
    assert tab.evaluate(skip) == "skip true", "the skip link shows when it has the focus"
