"""client.js in Node, over its own WebSocket and that of the package ws; and a client as strict as the published one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason='websockets is not installed: pip install ".[gateway]"')

from websockets.sync.server import ServerConnection, serve

import jazz_llm.gateway
from jazz_llm.testing import FakeServer

from .serving import MODELS, NASTY, WORDS, model_server, serving, settings

HERE = Path(__file__).parent
PAGE = Path(jazz_llm.gateway.__file__).parent / "page"
PACKAGES = ["ws@8", "typescript@5.9"]
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")

HEAD = """
import { GatewayClient, GatewayError } from "./client.mjs";
const [from, url, other] = process.argv.slice(2);
const options = from === "own" ? {} : { WebSocket: (await import(from)).WebSocket };
const user = (content) => [{ role: "user", content }];
const small = { model_id: "small" };
const failure = (promise) => promise.then(() => "no error", (error) => ({ is: error instanceof GatewayError, code: error.code, message: error.message, usage: error.usage }));
"""


@pytest.fixture(scope="module")
def packages() -> Path:
    """Return where npm's packages are: where JAZZ_LLM_NODE_MODULES says, or in ``build/node``."""
    folder = Path(os.environ.get("JAZZ_LLM_NODE_MODULES", "build/node/node_modules")).absolute()
    if not all((folder / package.partition("@")[0]).exists() for package in PACKAGES):
        pytest.skip(f"{' and '.join(PACKAGES)} are not in {folder}: npm install --prefix build/node {' '.join(PACKAGES)}")
    return folder


@pytest.fixture(params=["own", "ws"])
def socket(request: pytest.FixtureRequest) -> str:
    """Name the module of WebSocket."""
    if request.param == "ws":
        return (request.getfixturevalue("packages") / "ws" / "wrapper.mjs").as_uri()
    if not node_has("typeof WebSocket === 'function'"):
        pytest.skip("this Node has no WebSocket of its own: it came with 20.10")
    return "own"


def node_has(what: str) -> bool:
    return run("--input-type=module", "-e", f"process.exit({what} ? 0 : 1)", check=False).returncode == 0


def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [NODE or "node", "--no-warnings", "--experimental-websocket", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with model_server() as server:
        yield server


@pytest.fixture
def gateway(server: FakeServer, tmp_path: Path) -> Iterator[str]:
    with serving(port=0, config=settings(tmp_path, server.url)) as url:
        yield url.replace("http", "ws")


@pytest.fixture
def js(tmp_path: Path, socket: str) -> Callable[..., Any]:
    """Run JavaScript that ends with ``return``; return what it returned."""
    (tmp_path / "client.mjs").write_text((PAGE / "client.js").read_text())

    def call(body: str, *arguments: str) -> Any:
        script = tmp_path / "script.mjs"
        script.write_text(f"{HEAD}const main = async () => {{{body}}};\nconsole.log(JSON.stringify(await main()));\n")
        return json.loads(run(str(script), socket, *arguments).stdout)

    return call


LOADED = 'const gateway = new GatewayClient(url, options); await gateway.loadProvider("fake"); '


def test_every_method(js: Callable[..., Any], gateway: str, server: FakeServer) -> None:
    found = js(
        """
        const gateway = new GatewayClient(url, options);
        const providers = await gateway.getProviders();
        const loaded = await gateway.loadProvider("fake", { api_key: "sk-good" });
        const models = await gateway.getModels();
        const answer = await gateway.generate(user("hi"), small);
        const chunks = [];
        const done = await gateway.generateStream(user("hi"), { ...small, max_output_length: 7, stop_tokens: ["x"] }, (chunk) => chunks.push(chunk));
        await gateway.interrupt();
        gateway.disconnect();
        const ended = await gateway.closed;
        return { providers, loaded, models, answer, chunks, done, ended };
        """,
        gateway,
    )
    assert {"fake", "openai", "groq", "novelai", "deepseek", "ollama", "local"} <= set(found["providers"])
    assert found["models"] == MODELS
    assert found["answer"] == "".join(found["chunks"]) == "".join(WORDS)
    assert found["done"]["finish_reason"] == "stop"
    assert found["done"]["usage"]["total_tokens"] == 9
    assert found["ended"]["opened"] is True
    sent = server.requests[-1].json()
    assert (sent["model"], sent["max_tokens"], sent["stop"]) == ("small", 7, ["x"])
    assert server.requests[-1].headers["authorization"] == "Bearer sk-good"


def test_the_readmes_program(gateway: str, packages: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```js\n(.*?)```", (HERE.parent.parent / "README.md").read_text(), re.DOTALL)
    assert "ws://127.0.0.1:7562" in code
    assert '"ollama"' in code
    (tmp_path / "client.mjs").write_text((PAGE / "client.js").read_text())
    (tmp_path / "node_modules").symlink_to(packages)
    (tmp_path / "program.mjs").write_text(code.replace("ws://127.0.0.1:7562", gateway).replace('"ollama"', '"fake"'))
    said = run(str(tmp_path / "program.mjs")).stdout
    assert re.fullmatch(r"Hello, world!\n\d+ tokens\n", said), said


def test_what_a_provider_needs_is_told(js: Callable[..., Any], gateway: str) -> None:
    found = js("const gateway = new GatewayClient(url, options); const it = await gateway.describeProviders(); gateway.disconnect(); return it;", gateway)
    assert {"openai", "groq"} <= set(found["key_needed"])
    assert not {"fake", "ollama", "local"} & set(found["key_needed"])
    assert "azure" in found["base_url_needed"]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ('gateway.loadProvider("nobody")', "INVALID_PROVIDER"),
        ('gateway.loadProvider("fake", { api_key: "sk-bad" })', "AUTHORIZATION"),
        ('gateway.generate(user("hi"), { model_id: "none" })', "INVALID_MODEL"),
        ("gateway.generate([], small)", "INVALID_PROMPT"),
        ('gateway.generateStream(user("break"), small, () => {})', "UNEXPECTED"),
        ('gateway.generateStream(user("wait"), { ...small, timeout_ms: 100 }, () => {})', "TIMEOUT"),
    ],
)
def test_failures_are_errors_with_a_sentence(js: Callable[..., Any], gateway: str, call: str, code: str) -> None:
    found = js(f"{LOADED} const it = await failure({call}); gateway.disconnect(); return it;", gateway)
    assert (found["is"], found["code"]) == (True, code)
    assert " " in found["message"]
    assert "sk-bad" not in found["message"]


def test_a_signal_ends_one_generation_alone(js: Callable[..., Any], gateway: str, server: FakeServer) -> None:
    found = js(
        LOADED + """
        const stop = new AbortController();
        const ends = [failure(gateway.generateStream(user("wait"), small, () => stop.abort(), { signal: stop.signal }))];
        let other;
        ends.push(failure(gateway.generateStream(user("wait"), small, (chunk) => (other = chunk))));
        const first = await ends[0];
        while (!other) await new Promise((resolve) => setTimeout(resolve, 5));
        await gateway.interrupt();
        const late = await failure(gateway.generate(user("hi"), small, { signal: stop.signal }));
        const second = await ends[1];
        gateway.disconnect();
        return { first, second, late };
        """,
        gateway,
    )
    assert [found[name]["code"] for name in ("first", "second", "late")] == ["INTERRUPT"] * 3
    server.wait_for(lambda it: it.live == 0)


def test_an_error_of_the_callback_ends_the_call(js: Callable[..., Any], gateway: str, server: FakeServer) -> None:
    found = js(LOADED + 'const it = await failure(gateway.generateStream(user("wait"), small, () => { throw new Error("mine"); })); await gateway.getModels(); return (gateway.disconnect(), it);', gateway)
    assert found["message"] == "mine"
    server.wait_for(lambda it: it.live == 0)


def test_close_shuts_the_gateway_down_and_tells_every_call(js: Callable[..., Any], gateway: str) -> None:
    found = js(
        LOADED + """
        const second = new GatewayClient(url, options);
        await second.loadProvider("fake");
        const waiting = failure(second.generateStream(user("wait"), small, () => gateway.close()));
        const after = (await waiting, await second.closed, await failure(second.getModels()));
        return { waiting: await waiting, ended: await second.closed, after };
        """,
        gateway,
    )
    assert found["waiting"]["code"] == "INTERRUPT"
    assert found["ended"]["code"] == 1001
    assert "lost" in found["after"]["message"]


@contextmanager
def scripted(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    """Serve a gateway that does not do as it should."""
    with serve(handler, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize(
    ("leave", "words"),
    [
        (lambda socket: socket.socket.shutdown(2), "was lost"),
        (lambda socket: socket.close(1001), "shut down"),
        (lambda socket: socket.close(1008), "fast enough"),
        (lambda socket: socket.close(1009), "too large"),
    ],
    ids=["lost", "1001", "1008", "1009"],
)
def test_all_that_wait_are_told_when_the_connection_ends(js: Callable[..., Any], leave: Callable[[ServerConnection], None], words: str) -> None:
    def handler(socket: ServerConnection) -> None:
        for _ in range(4):
            socket.recv()
        leave(socket)

    body = """
        const gateway = new GatewayClient(url, options);
        const calls = [gateway.getProviders(), gateway.loadProvider("x"), gateway.generate(user("hi")), gateway.generateStream(user("hi"), {}, () => {})];
        const found = await Promise.all(calls.map(failure));
        return [...found, await failure(gateway.getModels())];
    """
    with scripted(handler) as url:
        found = js(body, url)
    assert all(words in it["message"] and it["is"] for it in found[:4])
    assert "lost" in found[4]["message"]


def test_a_gateway_that_is_not_there(js: Callable[..., Any]) -> None:
    found = js("const gateway = new GatewayClient(url, options); return [await failure(gateway.getProviders()), await gateway.closed];", "ws://127.0.0.1:9/")
    assert "cannot be reached" in found[0]["message"]
    assert found[1]["opened"] is False


def test_a_gateway_that_says_nothing(js: Callable[..., Any]) -> None:
    with scripted(lambda socket: [None for _ in socket] and None) as url:
        found = js("const gateway = new GatewayClient(url, options); const it = await failure(gateway.getModels()); gateway.disconnect(); return it;", url)
    assert "does not answer" in found["message"]


def test_messages_that_are_for_nobody_do_no_harm(js: Callable[..., Any]) -> None:
    def handler(socket: ServerConnection) -> None:
        asked = json.loads(socket.recv())
        for id_ in (None, "js-99", asked["unique_request_id"]):
            socket.send(json.dumps({"type": "error", "unique_request_id": id_, "error": "UNEXPECTED", "error_detail": f"{id_}."}))
        socket.recv()

    with scripted(handler) as url:
        found = js("const gateway = new GatewayClient(url, options); const it = await failure(gateway.getModels()); gateway.disconnect(); return it;", url)
    assert found == {"is": True, "code": "UNEXPECTED", "message": "js-1.", "usage": None}


def test_the_token_goes_by_the_subprotocol(js: Callable[..., Any], server: FakeServer, tmp_path: Path) -> None:
    body = """
        const found = [];
        for (const token of ["open-sesame", "wrong", undefined]) {
            const gateway = new GatewayClient(url, { ...options, token });
            found.push(await gateway.getProviders().then((names) => names.length > 5, (error) => error.message));
            gateway.disconnect();
        }
        try { new GatewayClient(url, { ...options, token: "a b" }); } catch (error) { found.push(error.code, error.message); }
        return found;
    """
    with serving(port=0, token="open-sesame", config=settings(tmp_path, server.url)) as url:
        good, *bad, code, sentence = js(body, url.replace("http", "ws"))
    assert good is True
    assert all("wants a token" in it for it in bad)
    assert (code, "a b" in sentence) == ("AUTHORIZATION", False)


def test_node_without_a_websocket_is_told_what_to_give(js: Callable[..., Any]) -> None:
    found = js("globalThis.WebSocket = undefined; try { new GatewayClient(); } catch (error) { return error.message; }")
    assert '"ws"' in found


def test_without_an_address_it_asks_the_gateway_of_this_machine(js: Callable[..., Any]) -> None:
    assert js("let to; new GatewayClient(undefined, { WebSocket: function (url) { to = url; } }); return to;") == "ws://127.0.0.1:7562"


def test_types(packages: Path, tmp_path: Path) -> None:
    use = """
        import { GatewayClient } from "./client.js";
        const gateway = new GatewayClient("ws://127.0.0.1:7562", { token: "t" });
        const names: string[] = await gateway.getProviders();
        await gateway.loadProvider("groq", { api_key: "k", preload_model_id: "m", base_url: undefined });
        const text: string = await gateway.generate([{ role: "user", content: "hi" }], { model_id: "m", timeout_ms: null });
        const done = await gateway.generateStream([], {}, (chunk) => console.log(chunk.length, names, text));
        console.log(done.usage?.total_tokens);
        // @ts-expect-error a role that there is not
        await gateway.generate([{ role: "robot", content: "hi" }]);
    """
    for name in ("client.js", "app.js"):
        (tmp_path / name).write_text((PAGE / name).read_text())
    (tmp_path / "use.ts").write_text(use)
    lib = ["--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler", "--lib", "es2022,dom,dom.iterable"]
    command = [str(packages / "typescript" / "bin" / "tsc"), "--checkJs", "--allowJs", "--noEmit", "--strict", "--noUnusedLocals", *lib, "app.js", "use.ts"]
    done = subprocess.run([NODE or "node", *command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_a_client_as_strict_as_the_published_one(gateway: str, socket: str, server: FakeServer) -> None:
    found = json.loads(run(str(HERE / "published_client.mjs"), socket, gateway).stdout)
    assert found["complaints"] == []
    assert found["models"] == MODELS
    assert found["loaded"] == "fake"
    assert {"fake", NASTY, "openai", "local"} <= set(found["providers"])
    assert found["modelsBefore"] == []
    assert (found["answer"], found["chunks"]) == ("".join(WORDS), WORDS)
    failures = {name: found[name].rpartition("Error: ")[2] for name in ("before", "streamBefore", "unknown", "badKey", "badModel", "noMessages", "timeout", "closed")}
    assert failures == {
        "before": "INVALID_PROVIDER",
        "streamBefore": "INVALID_PROVIDER",
        "unknown": "INVALID_PROVIDER",
        "badKey": "AUTHORIZATION",
        "badModel": "INVALID_MODEL",
        "noMessages": "INVALID_PROMPT",
        "timeout": "TIMEOUT",
        "closed": "INTERRUPT",
    }
    assert [it.rpartition("Error: ")[2] for it in found["interrupted"]] == ["INTERRUPT"] * 2
    assert found["code"] == 1001
    server.wait_for(lambda it: it.live == 0)
