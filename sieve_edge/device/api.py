"""What clients may ask of ``sieve-edge serve``: the parts of OpenAI's API that it knows."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

MAX_TOP = 20
_DEFAULT_TOKENS = 16
Stops = Annotated[list[str], Field(max_length=4)]


class Asked(BaseModel):
    """What every request may hold; a field that is not known is ignored, as other servers do."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: str | Stops | None = None
    stream: bool = False
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: Literal[1] = 1

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any) -> Any:
        """Take null as not given: clients send every field that they know."""
        return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value

    def stops(self) -> list[str]:
        """List the strings that end an answer; an empty one ends none."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]


class Completion(Asked):
    """``POST /v1/completions``; a field that would change the answer and is not known is refused."""

    echo: Literal[False] = False
    prompt: str | list[Annotated[int, Field(ge=0)]] | list[str]
    max_tokens: Annotated[int, Field(ge=1)] = _DEFAULT_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None


class TextPart(BaseModel):
    """A part of a message; there are no other kinds here than text."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: str
    content: str | list[TextPart] | None = Field(None, validate_default=True)

    @field_validator("content")
    @classmethod
    def _as_text(cls, value: str | list[TextPart] | None) -> str:
        """Join parts by line breaks, as other servers do for templates that know text only."""
        return "\n".join(part.text for part in value) if isinstance(value, list) else value or ""


class ChatCompletion(Asked):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] = 0
