"""Prompts: a task's Jinja template or chat messages, with worked examples before the question."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sieve_edge.errors import TaskError
from sieve_edge.protocols import Chat
from sieve_edge.task_config import TEMPLATES, Task

SHOT_GAP = "\n\n"
"""What stands between worked examples of a prompt that is no chat."""

Message = dict[str, str]
Values = Mapping[str, str]
"""Name in the prompt -> what stands for it."""


@dataclass(frozen=True)
class Shot:
    """A worked example: what was asked, and the right answer."""

    values: Values
    answer: str


def write_prompt(task: Task, values: Values, shots: Sequence[Shot]) -> str:
    """Write one prompt of a task that has a prompt.

    Args:
        task: The task.
        values: What the example puts into the template.
        shots: Worked examples that come first.

    Returns:
        The prompt, up to where the answer begins.
    """
    template = task.prompt or ""
    asked = [_fill(template, shot.values) + shot.answer for shot in shots]
    return SHOT_GAP.join([*asked, _fill(template, values)])


def write_messages(task: Task, values: Values, shots: Sequence[Shot]) -> list[Message]:
    """Write the messages of a task that has messages.

    Args:
        task: The task.
        values: What the example puts into the templates.
        shots: Worked examples, which come before the last message as earlier turns.

    Returns:
        ``role`` and ``content`` of each.
    """
    *before, last = task.messages
    messages = [{"role": each.role, "content": _fill(each.content, values)} for each in before]
    for shot in shots:
        messages.append({"role": last.role, "content": _fill(last.content, shot.values)})
        messages.append({"role": "assistant", "content": shot.answer.strip()})
    return [*messages, {"role": last.role, "content": _fill(last.content, values)}]


def write_chat(messages: Sequence[Message], chat: Chat) -> str:
    """Write messages as a model wants them.

    Args:
        messages: ``role`` and ``content`` of each.
        chat: The model's chats.

    Returns:
        The prompt, up to where the answer begins, without a start token that the tokenizer adds.

    Raises:
        TaskError: If the model's template refuses the messages.
    """
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
        template = environment.from_string(chat.template)
        text = template.render(messages=messages, add_generation_prompt=True, bos_token=chat.start, eos_token=chat.end)
    except jinja2.TemplateError as error:
        raise TaskError(f"the model's chat template refuses these messages ({error})") from error
    return text.removeprefix(chat.start) if chat.adds_start else text


class _Generation(Extension):
    """transformers' ``generation`` tag, which marks what an assistant said; here it stands for its content."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja has it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Read the tag.

        Args:
            parser: Jinja's parser.

        Returns:
            What is inside.
        """
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _fill(template: str, values: Values) -> str:
    try:
        return TEMPLATES.from_string(template).render(values)
    except jinja2.TemplateError as error:
        raise TaskError(f"the task's template cannot be filled ({error}); it holds: {template[:80]!r}") from error


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    # A date would make prompts, and with them splits, differ from day to day.
    return datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC).strftime(pattern)
