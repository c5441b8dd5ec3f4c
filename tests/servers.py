"""Servers on loopback that the judge and the endpoint scorer are tested against."""

import json
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import uvicorn

from sieve_edge.device.serve import make_app
from tests.command import start


def said(words, prompt_tokens=10, answer_tokens=1):
    message = {"role": "assistant", "content": words}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": answer_tokens, "total_tokens": 11}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return 200, {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


@contextmanager
def running_app(served, log_level="error"):
    """Serve a model on loopback as ``sieve-edge serve`` does; gives the address up to and with /v1."""
    server = uvicorn.Server(uvicorn.Config(make_app(served), port=free_port(), log_level=log_level))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    try:
        yield f"http://127.0.0.1:{server.config.port}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def fault_server(reply):
    """Serve chat completions: ``reply(number, request) -> (status, tree, bytes, pieces or None)``; None hangs up."""
    asked = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(asked)
                asked.append((body, self.headers["Authorization"]))
            status, tree = reply(number, body)
            if tree is None:
                self.close_connection = True
                self.connection.close()
                return
            if isinstance(tree, Iterator):
                self._send_slowly(status, tree)
                return
            data = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("retry-after-ms", "20")
            self.end_headers()
            self.wfile.write(data)

        def _send_slowly(self, status, pieces):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.close_connection = True
            with suppress(OSError):
                for piece in pieces:
                    self.wfile.write(piece)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def slow(seconds, reply):
    def later(number, body):
        time.sleep(seconds)
        return reply

    return later


def trickling(seconds, count):
    """Make a reply of white space, a byte at a time, with which some servers keep a connection open."""

    def pieces():
        for _ in range(count):
            time.sleep(seconds)
            yield b" "

    return lambda *_: (200, pieces())


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def await_server(process, url):
    """Wait until a server answers; its last words are the error if it ends or takes too long."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 (our own server)
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise AssertionError(process.communicate()[1]) from None
            time.sleep(0.1)


@contextmanager
def serving(*words):
    """Run ``sieve-edge serve`` until the block ends; yields its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start("serve", *words, "--port", port)
    try:
        await_server(process, f"{url}/health")
        yield f"{url}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
