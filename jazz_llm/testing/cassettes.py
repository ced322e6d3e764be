"""Record and replay: what calls ask of a server, and what comes back, kept in a file (extra ``testing``).

While a cassette runs, the pools of all instances are a recorder or a player. The class of what instances share is changed for
that time, and so is where a call gets its key: nothing is paid on the way of a call while no cassette runs.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import request, streams
from ..client import _Shared
from ..errors import LLMConfigurationError
from ..transport import httpx_clients
from .cassette_calls import Player, Recorder
from .cassette_file import dump, load
from .cassette_tape import Takes, Tape

if TYPE_CHECKING:
    from ..config import Config

# Sent to nobody: stands for the key in a replay, so that it wants none. No text ends as this begins.
_NO_KEY = "***replayed-without-a-key***"


class cassette:  # noqa: N801  # it reads as a verb after ``with``, as contextlib.suppress does
    """Record what the calls in the ``with`` body ask and get, or replay it from the file of an earlier run.

    It covers all calls of every instance in this process, of both colours, in all threads and loops, also of instances made
    before, and ``llm.client`` and ``llm.aclient`` where they use the instance's own pools; of nested cassettes the innermost
    has it all. Requests are told apart by method, URL and body (the order of JSON's fields does not matter); the same request
    several times gets its answers in their order. Failures and retries are replayed as they came. A replay opens no socket,
    needs no key, asks no key function, and does not wait between tries. ``with`` gives the file's path.

    Keys, cookies, and ids of organizations and projects are taken out before the file is written; of the request's headers
    nothing is kept, of the answer's what is known to be harmless. What the messages themselves say stays.

    A recording whose body raises is not saved: a file that holds half a test would be replayed from then on, and fail.

    Args:
        path: The YAML file; its folders are made. One that is there is not added to: each test wants its own.
        mode: ``"once"``: record if there is no file, else replay and send nothing. ``"none"``: never record.
        pace: Replay as slowly as the answers came, waits between tries included.

    Raises:
        LLMConfigurationError: By ``with``: the file cannot be read or written, or is missing with ``"none"``. By a call: the
            file holds no answer to it; the message shows what differs from the nearest request that it holds.
    """

    def __init__(self, path: str | os.PathLike[str], mode: Literal["once", "none"] = "once", *, pace: bool = False) -> None:
        if mode not in ("once", "none"):
            raise LLMConfigurationError(f'cassette: mode must be "once" or "none", not {mode!r}.')
        self._file = Path(path).resolve()  # two names of one file are one file
        self._records = mode == "once"
        self._pace = pace
        self._active: _Active

    def __enter__(self) -> Path:
        file = self._file
        if file.exists():
            player = Player(Tape(str(file), _load(file)), pace=self._pace)
            active = _Active(file, lambda _pool: player)
        elif self._records:
            _check_writable(file)
            takes = Takes()
            active = _Active(file, lambda pool: Recorder(pool(), takes), takes)
        else:
            raise LLMConfigurationError(f'{file} does not exist, and mode="none" records nothing: run once with mode="once".')
        _start(active)
        self._active = active
        return file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _stop(self._active)
        if kind is None and self._active.takes is not None and self._active.process == os.getpid():
            _save(self._file, self._active.takes)


def _load(file: Path) -> list[Any]:
    try:
        return list(load(file.read_text("utf-8")))
    except (OSError, ValueError) as error:
        reason = str(error)
    raise LLMConfigurationError(f"{file} is no cassette that can be replayed: {reason}. To record again, delete it.")


def _check_writable(file: Path) -> None:
    """Find out before anything is sent, and perhaps paid for, whether it can be saved."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            return
    except OSError as error:
        reason = str(error)
    raise LLMConfigurationError(f"{file} cannot be written: {reason}.")


def _save(file: Path, takes: Takes) -> None:
    """Write the file at once or not at all; what is written holds no secret at any time."""
    exchanges = takes.exchanges()
    if not exchanges:
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.write_text(dump(exchanges), "utf-8", newline="\n")
        temporary.replace(file)
        return
    except OSError as error:
        reason = str(error)
    finally:
        temporary.unlink(missing_ok=True)
    raise LLMConfigurationError(f"{file} cannot be written: {reason}.")


@dataclass(frozen=True, slots=True, eq=False)
class _Active:
    """A cassette that runs; ``stand_in`` is given a function that returns the real pool, ``takes`` is None in a replay."""

    file: Path
    stand_in: Callable[[Callable[[], Any]], Any]
    takes: Takes | None = None
    process: int = field(default_factory=os.getpid)  # a forked child has but a part of what was asked, and does not save


# A cassette is for every call of the process, whichever instance, thread or loop makes it: so these are the process's.
_running: list[_Active] = []
_lock = threading.Lock()
_real_pool, _real_apool, _real_key, _real_key_async = _Shared.pool, _Shared.apool, request.ask_key, request.ask_key_async


def _start(active: _Active) -> None:
    with _lock:
        if any(other.file == active.file for other in _running):
            raise LLMConfigurationError(f"{active.file} is in use by another cassette that runs now.")
        _running.append(active)
        _switch(_pool, _apool, _ask_key, _ask_key_async)


def _stop(active: _Active) -> None:
    with _lock:
        _running.remove(active)
        if not _running:
            _switch(_real_pool, _real_apool, _real_key, _real_key_async)


def _switch(pool: Any, apool: Any, key: Any, key_async: Any) -> None:
    shared: Any = _Shared  # else mypy forbids to set its methods
    shared.pool, shared.apool = pool, apool
    modules: tuple[Any, ...] = (streams, httpx_clients)
    for module in modules:
        module.ask_key, module.ask_key_async = key, key_async


def _pool(shared: _Shared) -> Any:
    return _stand_in(lambda: _real_pool(shared))


def _apool(shared: _Shared) -> Any:
    return _stand_in(lambda: _real_apool(shared))


def _stand_in(pool: Callable[[], Any]) -> Any:
    innermost = _running[-1:]  # one step: the last one may end meanwhile
    return innermost[0].stand_in(pool) if innermost else pool()


def _ask_key(config: Config) -> str | None:
    return _replayed_key(config) if _replays() else _real_key(config)


async def _ask_key_async(config: Config) -> str | None:
    return _replayed_key(config) if _replays() else await _real_key_async(config)


def _replays() -> bool:
    return any(active.takes is None for active in _running[-1:])


def _replayed_key(config: Config) -> str | None:
    """Return the key that was given as such, since what it stands in is told apart by it; else one for the look of it."""
    given = config.api_key
    return _NO_KEY if given is None or callable(given) else given.reveal()
