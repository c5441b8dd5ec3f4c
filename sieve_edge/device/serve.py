"""An OpenAI-compatible server on an exported folder, whatever its runtime; the only importer of starlette and uvicorn.

The prior that travels with the artifact is added to the labels' tokens, so that a client's likeliest label is the one
that validation scored. Answers are computed one at a time.
"""

import asyncio
import importlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError

from sieve_edge.device.api import Asked, ChatCompletion, Completion
from sieve_edge.device.replies import BadRequest, Job, Served
from sieve_edge.errors import EnvironmentMissing, SieveError

MOST_WAITING = 64
"""Requests at a time, of which one is answered; more are turned away with status 503."""


def make_app(served: Served) -> Any:
    """Make the server's application.

    Args:
        served: What is served.

    Returns:
        An ASGI application.
    """
    applications, routing = _import("starlette.applications"), _import("starlette.routing")
    server = _Server(served)
    routes = [
        routing.Route("/v1/completions", server.answering(Completion), methods=["POST"]),
        routing.Route("/v1/chat/completions", server.answering(ChatCompletion), methods=["POST"]),
        routing.Route("/v1/models", server.models),
        routing.Route("/health", server.health),
    ]
    return applications.Starlette(routes=routes)


class _Server:
    """The routes of the application."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._responses, self._threads = _import("starlette.responses"), _import("starlette.concurrency")
        self._number = itertools.count()
        self._turn = asyncio.Lock()

    async def models(self, _: Any) -> Any:
        known = {"id": self._served.name, "object": "model", "created": 0, "owned_by": "sieve-edge"}
        return self._responses.JSONResponse({"object": "list", "data": [known]})

    async def health(self, _: Any) -> Any:
        return self._responses.JSONResponse({"status": "ok"})

    def answering(self, kind: type[Asked]) -> Any:
        async def endpoint(request: Any) -> Any:
            try:
                asked: Any = kind.model_validate_json(await request.body())
                job = Job(self._served, asked, f"cmpl-{next(self._number)}")
                if asked.stream:
                    return await self._streamed(job)
                async with self._turn:
                    return self._responses.JSONResponse(await self._threads.run_in_threadpool(job.whole))
            except ValidationError as error:
                first = error.errors()[0]
                return self._refuse(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
            except (BadRequest, SieveError) as error:
                return self._refuse(str(error))

        return endpoint

    def _refuse(self, message: str) -> Any:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return self._responses.JSONResponse({"error": error}, status_code=400)

    async def _streamed(self, job: Job) -> Any:
        heard: asyncio.Queue[Any] = asyncio.Queue()
        writer = asyncio.create_task(self._write(job, heard))
        first = await heard.get()
        if isinstance(first, Exception):
            return self._refuse(str(first))

        async def told() -> AsyncIterator[str]:
            try:
                event = first
                while isinstance(event, str):
                    yield event
                    event = await heard.get()
            finally:
                # A client that went away needs no more.
                writer.cancel()

        return self._responses.StreamingResponse(told(), media_type="text/event-stream")

    async def _write(self, job: Job, heard: "asyncio.Queue[Any]") -> None:
        """Answer as fast as the model can, whoever reads it and how slowly."""
        async with self._turn:
            try:
                events = await self._threads.run_in_threadpool(job.events)
                while (event := await self._threads.run_in_threadpool(next, events, None)) is not None:
                    heard.put_nowait(event)
            except (BadRequest, SieveError) as error:
                heard.put_nowait(error)
        heard.put_nowait(None)


def run_server(served: Served, host: str, port: int) -> None:
    """Serve until interrupted.

    Args:
        served: What is served.
        host: Address to listen on.
        port: Port; 0 for any that is free.
    """
    app = make_app(served)
    _import("uvicorn").run(app, host=host, port=port, log_level="warning", limit_concurrency=MOST_WAITING)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentMissing(
            f"{name} cannot be imported ({error}); run: pip install 'sieve-edge[serve]'"
        ) from error
