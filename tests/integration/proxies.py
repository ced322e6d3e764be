"""Real servers of HTTP/2 in front of a model: nginx, nghttpx, HAProxy and Caddy before llama.cpp, and hypercorn by itself.

A :class:`Front` is what a client sees of one of them. Each is a process of the test's own with ports of its own, its files
in one folder, its log shown where a test fails; it is waited for by connecting, and nothing of it outlives its ``with``.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest

from jazz_llm.testing import Authority

HERE = "127.0.0.1"
ROOT = Path(__file__).parents[2]
PATIENCE = 15.0  # seconds for a process to answer, or to end, on a busy machine

#: Where each comes from, for whoever reads why a test was skipped.
INSTALL = {
    "nginx": "apt-get install nginx-light",
    "nghttpx": "apt-get install nghttp2-proxy",
    "haproxy": "apt-get install haproxy",
    "caddy": "apt-get install caddy",
    "hypercorn": "pip install hypercorn",
    "direct": "",
}


def busy_slots(body: bytes) -> int:
    """Count the slots that are generating, as llama.cpp lists them."""
    return sum(slot["is_processing"] for slot in json.loads(body))


@dataclass(frozen=True, slots=True)
class Model:
    """A model server as its operator sees it: its own address, and how many answers it is busy with."""

    port: int
    provider: str | None  # the row of the registry that tells how it behaves
    host: str = HERE
    path: str = "/slots"  # where it says what it is busy with
    count: Callable[[bytes], int] = busy_slots

    def busy(self) -> int:
        """Count the answers that it is at work on, over a connection of our own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        try:
            connection.request("GET", self.path)
            return self.count(connection.getresponse().read())
        finally:
            connection.close()

    def wait(self, busy: int, since: float | None = None, patience: float = 5.0) -> float:
        """Wait until it is busy with exactly so many answers; return the seconds since ``since``, or infinity."""
        start = time.monotonic()
        while self.busy() != busy:
            if time.monotonic() > start + patience:
                return float("inf")
            time.sleep(0.002)
        return time.monotonic() - (start if since is None else since)


@dataclass(frozen=True, slots=True)
class Front:
    """What clients see: the URL that they call, the protocol it speaks, and the model behind it."""

    name: str
    url: str
    model: Model
    process: Process | None

    @property
    def http_version(self) -> str:
        """Say what ``metrics.http_version`` has to be."""
        return "HTTP/2" if self.url.startswith("https") else "HTTP/1.1"


class Process:
    """A process of our own in a session of its own, so that its children end with it; its output goes to a file."""

    def __init__(self, command: list[str], folder: Path, port: int, *, patience: float = PATIENCE, **environment: str) -> None:
        self.log = folder / "log"
        # Were pytest itself killed, Linux ends the process too.
        guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        environment = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), **environment}
        with self.log.open("wb") as log:
            files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._popen = subprocess.Popen(guard + command, cwd=ROOT, env=environment, start_new_session=True, **files)
        try:
            self._wait_for(port, patience)
        except BaseException:
            self.stop()
            raise

    def _wait_for(self, port: int, patience: float) -> None:
        give_up = time.monotonic() + patience
        while self._popen.poll() is None and time.monotonic() < give_up:
            try:
                socket.create_connection((HERE, port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        pytest.fail(f"{self._popen.args} does not listen:\n{self.log.read_text(errors='replace')}")

    @contextmanager
    def showing_log(self) -> Iterator[None]:
        """Print what the log gains, for pytest to show where the test fails."""
        before = self.log.stat().st_size
        try:
            yield
        finally:
            log = self.log.read_bytes()[before:].decode(errors="replace")
            print(f"--- log of {self._popen.args}\n{log}")  # noqa: T201 - pytest shows it where the test fails

    def signal(self, number: signal.Signals, answer: str) -> None:
        """Send a signal to the process, not to its children, and wait until its log has the words ``answer``."""
        self._popen.send_signal(number)
        give_up = time.monotonic() + PATIENCE
        while answer not in self.log.read_text(errors="replace"):
            assert time.monotonic() < give_up
            time.sleep(0.005)

    def stop(self) -> None:
        """End the process: politely, so that it collects its children, but not for long."""
        self._popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(1)
        self.kill()

    def kill(self) -> None:
        """End the process with its children, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(PATIENCE)


# --- The proxies: each writes its files into a folder and returns the command
#
# None keeps connections to the model (nghttpx: 1 ms). llama.cpp announces keep-alive and yet closes each one right after a
# stream, so the next request on it would be answered 502 now and then; and while it is idle, it holds one of few threads.


@dataclass(frozen=True, slots=True)
class Job:
    """What a proxy has to do: listen on ``port`` with the certificate in ``folder``, pass on to the port ``upstream``."""

    folder: Path
    port: int
    upstream: int
    extra: str = ""

    @property
    def key(self) -> Path:
        """Return the file that holds both the private key and the certificates."""
        return self.folder / "key.pem"

    def write(self, text: str) -> str:
        """Write the proxy's configuration; return its path."""
        path = self.folder / "configuration"
        path.write_text(text)
        return str(path)


def nginx(program: str, job: Job) -> list[str]:
    version = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    new = tuple(map(int, re.findall(r"\d+", version)[:3])) >= (1, 25, 1)
    temporary = "".join(f"{kind}_temp_path {job.folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    configuration = job.write(f"""
        daemon off; worker_processes 1; pid {job.folder}/pid; error_log stderr notice;
        {f"user {getuser()};" if os.geteuid() == 0 else ""}
        events {{ worker_connections 4096; }}
        http {{
            access_log off; {temporary}
            server {{
                listen {HERE}:{job.port} ssl {"" if new else "http2"}; {"http2 on;" if new else ""}
                ssl_certificate {job.key}; ssl_certificate_key {job.key};
                {job.extra}
                location / {{
                    proxy_pass http://{HERE}:{job.upstream};
                    proxy_http_version 1.1; proxy_set_header Connection "";
                    proxy_buffering off;
                }}
            }}
        }}""")
    return [program, "-e", "stderr", "-p", str(job.folder), "-c", configuration]


def nghttpx(program: str, job: Job) -> list[str]:
    addresses = [f"--frontend={HERE},{job.port}", f"--backend={HERE},{job.upstream}"]
    options = ["--conf=/dev/null", "--workers=1", "--backend-keep-alive-timeout=1ms"]
    return [program, *options, *addresses, str(job.key), str(job.key)]


def haproxy(program: str, job: Job) -> list[str]:
    # Without "retries 0" it asks a server that is down again for 3 s.
    configuration = job.write(
        f"""
        defaults
            mode http
            option http-no-delay
            option http-server-close
            retries 0
            timeout connect 5s
            timeout client 60s
            timeout server 60s
        listen model
            bind {HERE}:{job.port} ssl crt {job.key} alpn h2,http/1.1
            server llamacpp {HERE}:{job.upstream}
        """.replace("\n        ", "\n")
    )
    return [program, "-db", "-f", configuration]


def caddy(program: str, job: Job) -> list[str]:
    configuration = job.write(f"""
        {{
            admin off
            auto_https off
        }}
        https://:{job.port} {{
            bind {HERE}
            tls {job.key} {job.key}
            reverse_proxy {HERE}:{job.upstream} {{
                flush_interval -1
                transport http {{
                    keepalive off
                }}
            }}
        }}""")
    return [program, "run", "--adapter", "caddyfile", "--config", configuration]


PROXIES: dict[str, Callable[[str, Job], list[str]]] = {f.__name__: f for f in (nginx, nghttpx, haproxy, caddy)}


@contextmanager
def serve_proxy(name: str, model: Model, authority: Authority, folder: Path, extra: str = "") -> Iterator[Front]:
    """Run a proxy before ``model`` while the block runs; ``extra`` goes into nginx's server block."""
    job = Job(folder, free_port(), model.port, extra)
    certificate(authority, job.key)
    process = Process(PROXIES[name](program(name), job), folder, job.port)
    try:
        yield Front(name, f"https://{HERE}:{job.port}", model, process)
    finally:
        process.stop()


# --- hypercorn: the model is this file's own


@contextmanager
def serve_hypercorn(authority: Authority, folder: Path) -> Iterator[Front]:
    """Serve :func:`app` over HTTP/2, and to :class:`Model` in the clear."""
    pytest.importorskip("hypercorn", reason=f"hypercorn is not installed: {INSTALL['hypercorn']}")
    key, port, model = folder / "key.pem", free_port(), Model(free_port(), None)
    certificate(authority, key)
    addresses = ["--bind", f"{HERE}:{port}", "--insecure-bind", f"{HERE}:{model.port}"]
    command = [sys.executable, "-m", "hypercorn", "--certfile", key, "--keyfile", key, *addresses, f"{__name__}:app"]
    process = Process(list(map(str, command)), folder, port)
    try:
        yield Front("hypercorn", f"https://{HERE}:{port}", model, process)
    finally:
        process.stop()


answering = 0  # how many answers the app is busy with


async def app(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Say "a " every millisecond until ``max_tokens``, or until the client is gone, in ASGI's terms."""
    global answering  # noqa: PLW0603 - the state of a server that has one process
    assert scope["type"] == "http"
    if scope["path"] == "/slots":
        await respond(send, b'[{"is_processing":%d}]' % answering)
        return
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    gone, answer = asyncio.ensure_future(receive()), asyncio.ensure_future(speak(json.loads(body), send))
    answering += 1
    try:
        await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        answering -= 1
        gone.cancel()
        answer.cancel()


async def speak(question: dict[str, Any], send: Callable[[Any], Any]) -> None:
    """Answer as a stream where the question asks for one, else as a whole."""
    count = question["max_tokens"]
    usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
    whole = {"index": 0, "message": {"role": "assistant", "content": "a " * count}, "finish_reason": "length"}
    if not question.get("stream"):
        await asyncio.sleep(count / 1000)
        await respond(send, json.dumps({"model": "app", "choices": [whole], "usage": usage}).encode())
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for i in range(count):
        await asyncio.sleep(0.001)
        finish = "length" if i == count - 1 else None
        await say(send, {"choices": [{"index": 0, "delta": {"content": "a "}, "finish_reason": finish}]})
    await say(send, {"choices": [], "usage": usage})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def say(send: Callable[[Any], Any], chunk: dict[str, Any]) -> None:
    body = b"data: %s\n\n" % json.dumps({"model": "app", **chunk}).encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def respond(send: Callable[[Any], Any], body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


# --- llama.cpp, and the small things


@contextmanager
def serve_llamacpp(folder: Path, context: int) -> Iterator[Model]:
    """Serve the tiny model with so long a context, and never an end of its own: answers last as long as asked for."""
    pytest.importorskip("xllamacpp", reason='llama.cpp is not installed: pip install ".[local]"')
    pytest.importorskip("gguf", reason='gguf is not installed: pip install ".[test]"')
    from .. import tiny_model

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(tiny_model, "CONTEXT", context)
        url = stack.enter_context(tiny_model.serve_tiny(folder, stop_bias=tiny_model.NEVER_STOPS))
        yield Model(int(url.rpartition(":")[2]), "llamacpp")


@contextmanager
def serve_front(name: str, model: Callable[[], Any], authority: Authority, folder: Path) -> Iterator[Front]:
    """Serve ``name`` while the block runs; ``model`` makes the context manager of the model that a proxy stands before."""
    with ExitStack() as stack:
        if name == "hypercorn":
            yield stack.enter_context(serve_hypercorn(authority, folder))
        elif name == "direct":
            yield direct(stack.enter_context(model()))
        else:
            program(name)  # before the model is started for nothing
            yield stack.enter_context(serve_proxy(name, stack.enter_context(model()), authority, folder))


def direct(model: Model) -> Front:
    """Return the model without anything before it."""
    return Front("direct", f"http://{HERE}:{model.port}", model, None)


def program(name: str) -> str:
    """Return the path of a proxy, or skip the test."""
    found = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    return found or pytest.skip(f"{name} is not installed: {INSTALL[name]}")


def certificate(authority: Authority, path: Path) -> None:
    """Write a key and certificates that the authority signs for the loopback."""
    authority._ca.issue_cert("localhost", HERE).private_key_and_cert_chain_pem.write_to_path(str(path))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])
