"""Talking on a terminal: what is typed is sent with the conversation so far; lines that begin with "/" are commands."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from ..client import OpenAICompatibleLLM
from ..config import Secret
from ..errors import LLMError
from ..request import endpoint_of
from ..types import Message
from .asking import Manner, ask
from .output import complain, note, one_line, write

_QUOTES = '"""'
_HELP = """\
/system TEXT   set the system message; without TEXT drop it
/model NAME    ask another model from now on
/clear         forget the conversation, but not the system message
/exit          leave, as Ctrl-D does
Alt+Enter      a new line; so is Enter in a text that begins with \"\"\", until \"\"\"
Ctrl-C         stop the answer
Put a space before a text that begins with "/".
"""


class Repl:
    """One conversation."""

    def __init__(self, llm: OpenAICompatibleLLM, manner: Manner, system: str | None, images: tuple[str, ...]) -> None:
        Message.user(None, images=images)  # one that cannot be read is said now
        self._llm = llm
        self._manner = manner
        self._system = [Message.system(system)] if system else []
        self._images = images  # for the first question
        self._turns: list[Message] = []
        self._commands = {
            "/system": self._set_system,
            "/model": self._set_model,
            "/clear": self._clear,
            "/help": self._help,
            "/exit": self._exit,
        }

    def run(self) -> None:
        """Talk until Ctrl-D or ``/exit``."""
        session = _session(self._llm)
        note(f"{self._named()}. /help lists the commands, Ctrl-D leaves.")
        with contextlib.suppress(EOFError):
            while True:
                with contextlib.suppress(KeyboardInterrupt):
                    self._take(_cleaned(session.prompt("> ")))

    def _take(self, text: str) -> None:
        """Do a command, or ask; what fails is one line."""
        try:
            if text.startswith("/"):
                name, *rest = text.split(maxsplit=1)
                self._commands.get(name, self._unknown)("".join(rest).strip())
            elif text.strip():
                self._ask(_unquoted(text.strip()))
        except LLMError as error:
            complain(str(error))

    def _ask(self, text: str) -> None:
        said = [*self._turns, Message.user(text, images=self._images)]
        view = self._manner.view()
        try:
            response = ask(self._llm, [*self._system, *said], self._manner, view)
        except KeyboardInterrupt:
            if view.text:
                self._images, self._turns = (), [*said, Message.assistant(view.text)]
            raise
        self._images = ()
        self._turns = response.transcript[len(self._system) :] if self._manner.tools else [*said, response.message]

    def _set_system(self, text: str) -> None:
        self._system = [Message.system(text)] if text else []

    def _set_model(self, name: str) -> None:
        if name:
            self._llm = self._llm.with_options(model=name)
        note(self._named())

    def _clear(self, _: str) -> None:
        self._turns = []

    def _help(self, _: str) -> None:
        write(_HELP)

    def _exit(self, _: str) -> None:
        raise EOFError

    def _unknown(self, _: str) -> None:
        complain('no such command; /help lists them. Put a space before a text that begins with "/".')

    def _named(self) -> str:
        config = self._llm._config
        return one_line(f"{config.model} at {endpoint_of(config.url)}")


# --- The line that is typed -------------------------------------------------------------------------------------------


class _Kept(FileHistory):
    """A history that holds no key, and that a full disk does not stop."""

    def __init__(self, path: Path, key: object) -> None:
        super().__init__(path)
        self._key = key

    def store_string(self, string: str) -> None:
        key = self._key.reveal() if isinstance(self._key, Secret) else None
        if key is None or key not in string:
            with contextlib.suppress(OSError):
                super().store_string(_cleaned(string))  # older prompt_toolkits stop at lone surrogates


def _session(llm: OpenAICompatibleLLM) -> PromptSession[str]:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # and not searching the history

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        if _unfinished(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(history=_history(llm._config.api_key), key_bindings=keys, multiline=True, prompt_continuation="  ")


def _unfinished(text: str) -> bool:
    text = text.strip()
    return text.startswith(_QUOTES) and not (len(text) >= 2 * len(_QUOTES) and text.endswith(_QUOTES))


def _unquoted(text: str) -> str:
    return text.removeprefix(_QUOTES).removesuffix(_QUOTES).strip() if text.startswith(_QUOTES) else text


def _cleaned(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # bytes that are no UTF-8 come as lone surrogates


def _history(key: Any) -> History:
    try:
        path = history_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        os.chmod(path, 0o600)  # Windows: the folder's rights count, and that is the user's own
        return _Kept(path, key)
    except (OSError, RuntimeError) as error:
        note(f"What you type is forgotten when you leave: {error}")
        return InMemoryHistory()


def history_file() -> Path:
    """Return where the history is kept; raises RuntimeError where there is no home folder."""
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        parent = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(parent).expanduser() / "jazz_llm" / "history"
