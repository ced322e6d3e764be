"""What a caller's own functions are told of each call: one frozen record each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import LLMConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from .errors import LLMError
    from .types import LLMResponse

Operation = Literal["chat", "models", "embeddings"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestRecord:
    """One call, as it begins; the same object is the ``request`` of every later record of this call.

    ``id`` is 16 hexadecimal digits, another for each call. ``model`` is the one asked for, "" for a list of models. ``url`` is
    without its query. ``streams``: the caller reads a stream. ``body`` is what is sent, before it was made into JSON ({} for a
    list of models): it holds the messages, and is not to be changed. No record holds the key or the headers that are sent.
    """

    id: str
    operation: Operation
    provider: str | None
    model: str
    url: str
    streams: bool
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RetryRecord:
    """A try that failed and is made again after ``wait_s`` seconds; ``attempt`` says which one failed, from 1."""

    request: RequestRecord
    attempt: int
    error: LLMError = field(repr=False)
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResponseRecord:
    """A call that ended well, or was left by its caller.

    ``stopped``: the caller left early (a stream closed, dropped or left by ``break``, a task cancelled); ``response`` is then
    what had come of the answer, None where nothing had. Else it is the answer that the caller gets.
    """

    request: RequestRecord
    response: LLMResponse[Any] | None = field(repr=False)
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorRecord:
    """A call that failed; ``error`` is what its caller gets: an ``LLMError``, or what the caller's own key function raised."""

    request: RequestRecord
    error: Exception = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions to be told of each call, its tries and its end: ``OpenAICompatibleLLM(..., hooks=Hooks(on_error=tell))``.

    Every ``on_request`` is followed by exactly one ``on_response`` or ``on_error``, however the call ends (but for what is
    still open when the interpreter exits). A call is one request to the server with its retries: ``run_tools`` makes one for
    each turn, ``embed`` one for each batch; a stream begins with its first read. The functions are not awaited: they run where
    the call runs, in the caller's thread or loop, and it waits for them, so they must not block. The end of a stream that is
    closed or dropped is told where that happens. A call that one of them makes is not told to it. What they raise is logged
    and touches nothing else; only what is no ``Exception``, such as KeyboardInterrupt, passes.
    """

    on_request: Callable[[RequestRecord], object] | None = None
    on_retry: Callable[[RetryRecord], object] | None = None
    on_response: Callable[[ResponseRecord], object] | None = None
    on_error: Callable[[ErrorRecord], object] | None = None

    def __post_init__(self) -> None:
        for name in ("on_request", "on_retry", "on_response", "on_error"):
            hook = getattr(self, name)
            if hook is not None and not callable(hook):
                raise LLMConfigurationError(f"Hooks: {name} must be a function, not {type(hook).__name__}.")
            if inspect.iscoroutinefunction(hook):
                raise LLMConfigurationError(f"Hooks: {name} must not be async, since nobody awaits it.")

    def __deepcopy__(self, memo: object) -> Self:
        # As a function is: a method would take its object along, a counter or a tracer, which then nobody reads.
        return self


def check_hooks(hooks: Hooks | Sequence[Hooks] | None) -> tuple[Hooks, ...]:
    """Return the hooks as a tuple, however many were given."""
    if hooks is None:
        return ()
    given = (hooks,) if isinstance(hooks, Hooks) else hooks
    if not isinstance(given, list | tuple) or not all(isinstance(one, Hooks) for one in given):
        raise LLMConfigurationError(f"hooks must be Hooks or a list of Hooks, not {type(hooks).__name__}.")
    return tuple(given)
