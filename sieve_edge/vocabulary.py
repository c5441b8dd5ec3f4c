"""Stage: the tokens that the task needs; tokenizer, embedding and head without the others; off by default."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sieve_edge.errors import ArtifactError, ConfigError
from sieve_edge.files import read_json, write_json
from sieve_edge.model.checkpoint import read_layout, save_checkpoint
from sieve_edge.model.flat import TorchTextModel
from sieve_edge.model.load import LoadedModel
from sieve_edge.model.matrices import count_params
from sieve_edge.model.tokens import make_tokenizer, named_tokens, needed_tokens, trim_model_, trim_tokenizer
from sieve_edge.progress import Progress
from sieve_edge.recipe import Recipe
from sieve_edge.task.evaluate import relative_loss
from sieve_edge.task.exam import Exam
from sieve_edge.task.examiner import Examiner, label_ids
from sieve_edge.task.examples import TUNING, Example
from sieve_edge.task_config import Task

KNOWN, UNSEEN = ("calibration", TUNING, "selection"), ("test", "transfer")


def trim_vocabulary(
    loaded: LoadedModel,
    model: Any,
    checkpoint: Path,
    examiner: Examiner,
    splits: Mapping[str, Sequence[Example]],
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Keep the tokens that calibration, tuning and selection texts, answers and the user's own texts are made of.

    Reads the checkpoint; writes a smaller one to ``out``. Starts over when interrupted. Costs one pass over the
    selection split, and one over test and transfer with either vocabulary, to say what other tokens cost.

    Args:
        loaded: Dense model, whose tokenizer is trimmed.
        model: Pruned model; changed in place.
        checkpoint: Its folder.
        examiner: Says what is asked.
        splits: Examples of every split.
        recipe: Settings.
        out: Work folder.
        progress: Where progress is shown.

    Returns:
        Metrics for the manifest.
    """
    smaller = smaller_vocabulary(loaded, examiner.task, splits, recipe)
    sidecar = read_json(checkpoint / "sieve_edge.json")
    known = Scored(sidecar["selection"]["pruned"], sidecar["prior"]["pruned"])
    whole = _scores(model, _exams(examiner, splits, loaded.backend, loaded.ends), known, "all tokens", recipe, progress)
    before = count_params(model)
    smaller.trim_(model)
    exams = _exams(examiner, splits, smaller.tokenizer.backend_tokenizer, smaller.ends(loaded))
    save_checkpoint(model, smaller.tokenizer, read_layout(checkpoint), exams["selection"].prompts[0], out)
    with progress.task("score with the smaller vocabulary", len(exams["selection"].prompts), "prompts") as advance:
        answers = exams["selection"].take(
            TorchTextModel(model, recipe.main_device), recipe.search.batch_tokens, advance
        )
    found = Scored(exams["selection"].grade(answers).score, exams["selection"].prior(answers))
    trimmed = _scores(model, exams, found, "fewer tokens", recipe, progress)
    sidecar["prior"]["pruned"], sidecar["selection"]["pruned"] = found.prior, found.score
    sidecar["kept_fraction"]["model"] *= count_params(model) / before
    write_json(out / "sieve_edge.json", sidecar)
    tokens = {"before": loaded.backend.get_vocab_size(), "after": len(smaller.kept)}
    progress.say(f"  {tokens['after']} of {tokens['before']} tokens are kept")
    lost = {split: relative_loss(trimmed[split], whole[split]) for split in UNSEEN}
    for split in UNSEEN:
        changed = smaller.changed[split]
        progress.say(
            f"  {changed['texts']:.1%} of the {split} texts are split into other tokens, {changed['tokens']:.2%} more "
            f"in all; the score is {trimmed[split]:.4f}, with all tokens {whole[split]:.4f}"
        )
    scores = {"whole": whole, "trimmed": trimmed}
    return {"keep": "auto", "tokens": tokens, "changed": smaller.changed, "scores": scores, "lost": lost}


class Scored(NamedTuple):
    """A model's score on the selection split, and the prior that was fitted there."""

    score: float
    prior: list[float]


def _exams(
    examiner: Examiner, splits: Mapping[str, Sequence[Example]], tokenizer: Any, ends: tuple[int, ...]
) -> dict[str, Exam]:
    return {name: examiner.exam(splits[name], tokenizer, ends) for name in ("selection", *UNSEEN)}


def _scores(
    model: Any, exams: Mapping[str, Exam], selection: Scored, told: str, recipe: Recipe, progress: Progress
) -> dict[str, float]:
    """Score a model on the splits that nothing was chosen by, beside what is known of the one that all was."""
    scores = {"selection": selection.score}
    for split in UNSEEN:
        exam, text_model = exams[split], TorchTextModel(model, recipe.main_device)
        with progress.task(f"score {split}, {told}", len(exam.prompts), "prompts") as advance:
            answers = exam.take(text_model, recipe.search.batch_tokens, advance)
        scores[split] = exam.grade(answers, selection.prior).score
    return scores


@dataclass(frozen=True)
class SmallerVocabulary:
    """A part of a tokenizer's tokens.

    Attributes:
        kept: Token ids in the whole vocabulary, rising; a token's place is its new id.
        tokenizer: Tokenizer with these tokens only.
        changed: Split -> fraction of its texts that are split into other tokens, and relative growth in tokens.
    """

    kept: tuple[int, ...]
    tokenizer: Any
    changed: Mapping[str, Mapping[str, float]]

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Tokenize one text; see ``LoadedModel.encode``.

        Args:
            text: Any text.
            special: Whether the model's start token is added, where it has one.

        Returns:
            New token ids.
        """
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def ends(self, loaded: LoadedModel) -> tuple[int, ...]:
        """Find the tokens that end an answer.

        Args:
            loaded: Dense model.

        Returns:
            Their new ids.
        """
        return tuple(self.kept.index(token) for token in loaded.ends if token in self.kept)

    def trim_(self, model: Any) -> None:
        """Trim a model, in place.

        Args:
            model: transformers model with the whole vocabulary.
        """
        trim_model_(model, self.kept)


def smaller_vocabulary(
    loaded: LoadedModel, task: Task, splits: Mapping[str, Sequence[Example]], recipe: Recipe
) -> SmallerVocabulary:
    """Choose the tokens of texts and answers that may be known, of the user's own texts, the first and the ends.

    Args:
        loaded: Dense model, whose tokenizer is trimmed.
        task: The task.
        splits: Examples of every split.
        recipe: Settings.

    Returns:
        The tokens. A file of texts that cannot be read is a ``ConfigError``.

    Raises:
        ArtifactError: If a text that the tokens were taken from encodes differently afterwards.
    """
    sources = [name for name in KNOWN if name in splits]
    texts = {name: [example.prompt for example in splits[name]] for name in (*sources, *UNSEEN)}
    own = _own_texts(recipe.vocabulary.texts_file)
    # After a space, as inside a prompt, and alone.
    texts["own"] = [*own, *(f" {text}" for text in own)]
    answers = [example.answer for name in sources for example in splits[name]]
    known = [loaded.encode(text) for name in (*sources, "own") for text in texts[name]]
    known += [loaded.encode(answer, special=False) for answer in answers]
    stored = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    rows = len(loaded.model.get_input_embeddings().weight)
    labels = label_ids(task, loaded.encode)
    first = range(min(recipe.vocabulary.first_tokens, loaded.backend.get_vocab_size()))
    named = {*loaded.ends, *named_tokens(loaded.model.config, loaded.model.generation_config)}
    kept = needed_tokens(stored, (index for ids in (*known, *labels, first, named) for index in ids), rows)
    tokenizer = make_tokenizer(json.dumps(trim_tokenizer(stored, kept)), loaded.tokenizer)
    new_ids = {old: new for new, old in enumerate(kept)}
    changed = {name: _changed(texts[name], loaded, tokenizer, new_ids) for name in texts}
    if any(changed[name]["texts"] for name in (*sources, "own")):
        raise ArtifactError(f"vocabulary: texts that it was made from encode differently: {changed}")
    return SmallerVocabulary(tuple(kept), tokenizer, changed)


def _own_texts(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--set", [f"vocabulary.texts_file: cannot read {file} ({error})"]) from error


def _changed(texts: Sequence[str], loaded: LoadedModel, tokenizer: Any, new_ids: Mapping[int, int]) -> dict[str, float]:
    """Say which fraction of texts is split into other tokens, and how many tokens more all texts together take."""
    if not texts:
        return {"texts": 0.0, "tokens": 0.0}
    before = [[new_ids.get(index, -1) for index in loaded.encode(text)] for text in texts]
    after = [tokenizer.backend_tokenizer.encode(text).ids for text in texts]
    differing = sum(old != new for old, new in zip(before, after, strict=True)) / len(texts)
    return {"texts": differing, "tokens": sum(map(len, after)) / sum(map(len, before)) - 1.0}
