"""An OpenAI-compatible server on an exported folder, whatever its runtime; the only importer of starlette and uvicorn.

The prior that travels with the artifact is added to the labels' tokens, so that a client's likeliest label is the one
that validation scored. Answers are computed one at a time, by one thread.
"""

import asyncio
import contextlib
import importlib
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
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
    return _Server(served).application()


class _Server:
    """The routes of the application."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._responses = _import("starlette.responses")
        self._number = itertools.count()
        # A context of llama.cpp bears one caller at a time. What one thread computes can never overlap, even where who
        # asked no longer waits.
        self._thread = ThreadPoolExecutor(1, "answers")
        self._ending = threading.Event()

    def application(self) -> Any:
        applications, routing = _import("starlette.applications"), _import("starlette.routing")
        routes = [
            routing.Route("/v1/completions", self._answering(Completion), methods=["POST"]),
            routing.Route("/v1/chat/completions", self._answering(ChatCompletion), methods=["POST"]),
            routing.Route("/v1/models", self._models),
            routing.Route("/health", self._health),
        ]
        return applications.Starlette(routes=routes)

    def end(self) -> None:
        """Stop what is being answered, after its next token."""
        self._ending.set()
        self._thread.shutdown(cancel_futures=True)

    async def _models(self, _: Any) -> Any:
        known = {"id": self._served.name, "object": "model", "created": 0, "owned_by": "sieve-edge"}
        return self._responses.JSONResponse({"object": "list", "data": [known]})

    async def _health(self, _: Any) -> Any:
        return self._responses.JSONResponse({"status": "ok"})

    def _answering(self, kind: type[Asked]) -> Any:
        async def endpoint(request: Any) -> Any:
            left = threading.Event()

            def stopped() -> bool:
                return left.is_set() or self._ending.is_set()

            try:
                asked: Any = kind.model_validate_json(await request.body())
                job = Job(self._served, asked, f"cmpl-{next(self._number)}", stopped)
                if asked.stream:
                    return await self._streamed(job, left)
                return self._responses.JSONResponse(await self._computed(job, request, left))
            except ValidationError as error:
                first = error.errors()[0]
                return self._refuse(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
            except (BadRequest, SieveError) as error:
                return self._refuse(str(error))
            except asyncio.CancelledError:
                left.set()
                raise

        return endpoint

    async def _computed(self, job: Job, request: Any, left: threading.Event) -> Any:
        """Answer at once, or stop where the client leaves before."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            left.set()

        watching = asyncio.create_task(watch())
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job.whole)
        finally:
            watching.cancel()

    def _refuse(self, message: str) -> Any:
        return self._responses.JSONResponse(_error(message), status_code=400)

    async def _streamed(self, job: Job, left: threading.Event) -> Any:
        """Answer as fast as the model can, whoever reads it and how slowly."""
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Any]()
        loop.run_in_executor(
            self._thread, _write, job, lambda event: loop.call_soon_threadsafe(heard.put_nowait, event)
        )
        first = await heard.get()
        if isinstance(first, Exception):
            raise first
        response = self._responses.StreamingResponse(_told(first, heard), media_type="text/event-stream")

        async def until_left(*connection: Any) -> None:
            try:
                await response(*connection)
            finally:
                # A client that went away, before the first word or later, needs no more.
                left.set()

        return until_left


def _write(job: Job, tell: Callable[[str | Exception | None], Any]) -> None:
    """Tell each event, and at last why nothing more comes; whatever goes wrong, the reader is not left waiting."""
    last: Exception | None = None
    try:
        for event in job.events():
            tell(event)
    except Exception as error:  # not swallowed: the reader raises it
        last = error
    finally:
        tell(last)


async def _told(event: Any, heard: "asyncio.Queue[Any]") -> AsyncIterator[str]:
    while isinstance(event, str):
        if event:
            yield event
        event = await heard.get()
    if isinstance(event, SieveError):
        yield f"data: {json.dumps(_error(str(event)))}\n\n"
    elif event is not None:
        raise event


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def open_port(host: str, port: int) -> socket.socket:
    """Take a port; who connects waits until ``run_server``.

    Args:
        host: Address to listen on.
        port: Port; 0 for any that is free.

    Returns:
        The socket.

    Raises:
        SieveError: If the port is taken, or the address is none of this machine's.
    """
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # A server that has just ended leaves connections behind, which keep the port for a minute.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
        door.listen()
    except OSError as error:
        door.close()
        raise SieveError(
            f"{host}:{port}: cannot listen there ({error.strerror or error}); choose others by --port and --host"
        ) from error
    return door


def run_server(served: Served, door: socket.socket) -> None:
    """Serve until interrupted.

    Args:
        served: What is served.
        door: Where clients come in, from ``open_port``.
    """
    uvicorn, server = _import("uvicorn"), _Server(served)
    config = uvicorn.Config(server.application(), log_level="warning", limit_concurrency=MOST_WAITING)
    try:
        # Ctrl-C is how a server ends.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[door])
    finally:
        server.end()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvironmentMissing(
            f"{name} cannot be imported ({error}); run: pip install 'sieve-edge[serve]'"
        ) from error
