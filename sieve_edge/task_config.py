"""What a user configures of a task, strict and checked before anything expensive.

Every field's description is the reference for the YAML files.
"""

import re
from typing import Annotated, Literal

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator, Field, field_validator, model_validator

from sieve_edge.config import PositiveFloat, PositiveInt, Strict
from sieve_edge.keys import checked_url, checked_variable

TEXT = "text"
"""Name of a source's text in prompts."""

LABEL_METRIC = "balanced_accuracy"
TextMetricName = Literal["exact_match", "token_f1", "contains", "regex", "json_field", "rouge_l"]
TEMPLATES = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
"""Of prompts; sandboxed, since a task's file may come from someone else."""

OPENAI_URL = "https://api.openai.com/v1"


def _checked_pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"'{value}' is no regular expression ({error})") from error
    if groups < 1:
        raise ValueError(f"'{value}' has no group; put what is compared in parentheses")
    return value


Pattern = Annotated[str, AfterValidator(_checked_pattern)]
"""Regular expression with a group."""


class Source(Strict):
    """A table with a text column and a label column."""

    path: str = Field(
        description="file:PATH or package:IMPORT_NAME/PATH of a .csv with a header, .jsonl (UTF-8) or .parquet file, "
        "or of several by * and ? in the file's name; or hf:ORGANISATION/NAME[/CONFIG][:SPLIT] of the Hugging Face "
        "hub, where a configuration needs the organisation (hf:rajpurkar/squad/plain_text)."
    )
    text: str = Field(
        "text",
        description="Column that holds the text, such as a passage: what max_words cuts; no two examples share it.",
    )
    label: str = Field("label", description="Column that holds the label, or the reference answer.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Further names in the prompt, such as question -> the column that holds each."
    )
    where: dict[str, str] = Field(default_factory=dict, description="Keep only rows whose columns have these values.")
    where_not: dict[str, str] = Field(
        default_factory=dict, description="Leave out rows whose columns have these values."
    )
    label_pattern: Pattern | None = Field(
        None, description="Regular expression whose first group, searched in the label column, is the label."
    )
    label_values: dict[str, str] = Field(
        default_factory=dict,
        description="Value of the label column here -> the task's label; rows with other values are left out.",
    )
    max_words: PositiveInt | None = Field(None, description="Cut the text to this many words; nothing else is cut.")
    collapse_spaces: bool = Field(
        False, description="Whether lines and runs of spaces in the text become one space, as in a text that is cut."
    )

    @field_validator("path")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if not value.startswith(("file:", "package:", "hf:")):
            raise ValueError(f"'{value}' must start with file:, package: or hf:")
        return value

    @field_validator("columns")
    @classmethod
    def _not_the_text(cls, value: dict[str, str]) -> dict[str, str]:
        if TEXT in value:
            raise ValueError(f"'{TEXT}' names the text column already; choose another name")
        return value


class CalibrationSource(Source):
    """One more table whose texts the model is calibrated on; never scored on."""

    weight: PositiveFloat = Field(
        1.0,
        description="Examples of this source in the calibration split for each one of the main source. Statistics are "
        "sums over tokens, so that of two sources of equal weight the one with longer texts counts more.",
    )


class Splits(Strict):
    """How many examples each split takes; splits are disjoint by text."""

    calibration: PositiveInt = Field(description="Examples that calibrate may read, of all its sources together.")
    selection: Annotated[int, Field(ge=20)] = Field(description="Examples that the search scores on.")
    test: Annotated[int, Field(ge=20)] = Field(description="Examples of the final score, never seen by the search.")
    transfer: Annotated[int, Field(ge=20)] = Field(
        description="Examples of the same task from another source, never seen by the search."
    )
    tuning: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Further examples of the main source that tune trains on, beside the calibration split; a smaller "
        "vocabulary has their tokens too.",
    )


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: str = Field(description="Jinja template of what is said.")


class JudgeSettings(Strict):
    """A model behind an OpenAI-compatible endpoint that says whether an answer is correct; metric: judge."""

    model: str = Field("gpt-4o", description="Name of the judge; the paper's is GPT-4o.")
    base_url: Annotated[str, AfterValidator(checked_url)] = Field(
        OPENAI_URL, description="Endpoint, up to and with /v1, without a key in it."
    )
    api_key_env: Annotated[str, AfterValidator(checked_variable)] = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the key; it is never written down."
    )
    concurrency: PositiveInt = Field(8, description="Calls at a time.")
    timeout_s: PositiveFloat = Field(
        60.0, description="Seconds that one call may take, and that the endpoint may be silent."
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        5, description="Further tries after status 408, 409, 429 or 5xx, or a lost connection, with growing waits."
    )
    max_calls: PositiveInt = Field(
        20_000,
        description="Calls that one build may make, tries included, however often it is resumed; or one evaluate.",
    )
    max_usd: PositiveFloat | None = Field(
        None,
        description="Money that one build may spend; needs both prices. A call is made only if it cannot exceed this.",
    )
    max_answer_tokens: PositiveInt = Field(
        8, description="Most tokens of a verdict; more for a judge that thinks in <think>...</think> before it."
    )
    answer_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="Name that the endpoint has for that limit."
    )
    usd_per_million_prompt_tokens: PositiveFloat | None = Field(
        None,
        description="Price of what the judge reads; a call whose usage is not told counts as the most it may cost.",
    )
    usd_per_million_answer_tokens: PositiveFloat | None = Field(None, description="Price of what the judge writes.")
    seed: int = Field(0, description="Seed that the judge is asked to use; its temperature is 0.")
    screen: TextMetricName = Field(
        "token_f1", description="Metric that a candidate must hold on the first part before the judge sees its answers."
    )

    @model_validator(mode="after")
    def _prices_for_a_ceiling(self) -> "JudgeSettings":
        prices = (self.usd_per_million_prompt_tokens, self.usd_per_million_answer_tokens)
        if self.max_usd is not None and None in prices:
            raise ValueError("max_usd: needs usd_per_million_prompt_tokens and usd_per_million_answer_tokens")
        return self


class Task(Strict):
    """A task: where its examples are, how the model is asked, and what a right answer is."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] = Field(description="Name of the task.")
    description: str = Field(description="One line that says what the task is.")
    source: Source = Field(description="Examples of the calibration, selection and test splits.")
    transfer: Source = Field(description="Examples of the transfer set.")
    calibration_sources: tuple[CalibrationSource, ...] = Field(
        (),
        description="Further sources of the calibration split; the main one has weight 1. They give no text of another "
        "split. Where the transfer source is one of them, the transfer set no longer shows how a new source fares.",
    )
    prompt: str | None = Field(
        None, description="Jinja template of the prompt: {{ text }} and the names in columns. Or give messages."
    )
    messages: tuple[Message, ...] = Field(
        (), description="Chat messages instead of a prompt, put together by the model's own chat template."
    )
    shots: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Examples with their answers that come before each question, drawn from the calibration split, "
        "labels in turn.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Value of the label column -> the answer that the model gives, with its leading space; for "
        "balanced_accuracy. The likelihoods of these answers are compared.",
    )
    splits: Splits = Field(description="Sizes of the splits.")
    metric: Literal["balanced_accuracy", "judge"] | TextMetricName = Field(
        "balanced_accuracy",
        description="Score: mean recall over labels (balanced_accuracy); or of the answer that the model writes, "
        "normalised equality (exact_match), overlap of words (token_f1), whether the reference occurs (contains), the "
        "match of a pattern (regex), a field of a JSON object (json_field), longest common subsequence (rouge_l), a "
        "judging model's word (judge).",
    )
    pattern: Pattern | None = Field(
        None, description="metric regex: regular expression whose first group in the answer must equal the reference."
    )
    field: str | None = Field(None, description="metric json_field: name of the field that must equal the reference.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("\n",), description="Strings that end an answer; they are no part of it."
    )
    max_new_tokens: PositiveInt = Field(
        1, description="Most tokens of an answer; with labels, those of the model's own that calibrate runs over."
    )
    judge: JudgeSettings | None = Field(None, description="metric judge: who judges; left out, the defaults.")

    @property
    def writes(self) -> bool:
        """Whether the model writes its answer, instead of choosing a label."""
        return self.metric != LABEL_METRIC

    @model_validator(mode="after")
    def _usable(self) -> "Task":
        problems = [*self._asked_wrongly(), *self._scored_wrongly()]
        sources = 1 + len(self.calibration_sources)
        if self.splits.calibration < sources + self.shots:
            told = f"{sources} sources it has" if not self.shots else f"{sources} sources and {self.shots} shots it has"
            problems.append(f"splits.calibration: {self.splits.calibration} is fewer than the {told}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def templates(self) -> dict[str, str]:
        """List the templates.

        Returns:
            Place in the file -> template.
        """
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        return prompt | {f"messages.{index}.content": each.content for index, each in enumerate(self.messages)}

    def _asked_wrongly(self) -> list[str]:
        problems = []
        if (self.prompt is None) == (not self.messages):
            problems.append("prompt: give either a prompt or messages")
        if self.messages and self.messages[-1].role != "user":
            problems.append(f"messages: the last is of the {self.messages[-1].role}, must be of the user")
        used: set[str] = set()
        for place, template in self.templates().items():
            try:
                used |= jinja2.meta.find_undeclared_variables(TEMPLATES.parse(template))
            except jinja2.TemplateSyntaxError as error:
                problems.append(f"{place}: not a Jinja template ({error.message}, line {error.lineno})")
                return problems
        if TEXT not in used:
            problems.append(f"{'messages' if self.messages else 'prompt'}: contains no {{{{ {TEXT} }}}}")
        sources = {"source": self.source, "transfer": self.transfer}
        sources |= {f"calibration_sources.{index}": each for index, each in enumerate(self.calibration_sources)}
        for place, source in sources.items():
            missing = sorted(used - {TEXT, *source.columns})
            if missing:
                problems.append(f"{place}.columns: lacks {missing}, which the prompt asks for")
        return problems

    def _scored_wrongly(self) -> list[str]:
        problems = []
        if not self.writes:
            if len(self.labels) < 2:
                problems.append(f"labels: {len(self.labels)} given, at least 2 are needed")
            if len(set(self.labels.values())) != len(self.labels) or not all(self.labels.values()):
                problems.append("labels: answers must be distinct and not empty")
        else:
            if self.labels:
                problems.append(f"labels: metric {self.metric} compares written answers; leave labels out")
            if "max_new_tokens" not in self.model_fields_set:
                problems.append(f"max_new_tokens: metric {self.metric} needs it, for example 16")
        screens = {self.metric} if self.judge is None else {self.metric, self.judge.screen}
        for metric, name in (("regex", "pattern"), ("json_field", "field")):
            if (metric in screens) != (getattr(self, name) is not None):
                problems.append(f"{name}: goes with metric {metric}, and is needed there")
        if self.judge is not None and self.metric != "judge":
            problems.append(f"judge: goes with metric judge, the metric is {self.metric}")
        return problems
