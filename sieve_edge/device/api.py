"""What clients may ask of ``sieve-edge serve``: the parts of OpenAI's API that it knows."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

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

    def stops(self) -> list[str]:
        """List the strings that end an answer; an empty one ends none."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]


class Completion(Asked):
    """``POST /v1/completions``."""

    prompt: str | list[Annotated[int, Field(ge=0)]] | list[str]
    max_tokens: Annotated[int, Field(ge=1)] = _DEFAULT_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: str
    content: str


class ChatCompletion(Asked):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] = 0
