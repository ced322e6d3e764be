"""What a model is to say, as data, and how that stands on the wire: whole, or as the chunks of a stream.

``FakeServer`` (script.py) and ``FakeLLM`` both speak by this; it needs no extra.
"""

from __future__ import annotations

import base64
import difflib
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..errors import LLMConfigurationError
from ..mock import words_of
from ..providers import BY_NAME
from ..types import ToolCall

MODEL = "fake-model"
DONE = b"data: [DONE]\n\n"
PLAIN_USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}

# One and the same call as each provider counts it: 30 tokens before, 10 of them cached, 20 after, 5 of them reasoning, as far
# as it tells. The shapes are those of tests/conformance/data/*usage_cases.json, where each has its source.
_COUNTS = {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": 50}
_CACHED = {"prompt_tokens_details": {"cached_tokens": 10}}
_REASONED = {"completion_tokens_details": {"reasoning_tokens": 5}}
USAGES: dict[str, dict[str, Any]] = {
    "openai": {
        **_COUNTS,
        "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0, "accepted_prediction_tokens": 0},
    },
    "anthropic": {**_COUNTS, "prompt_tokens_details": None, "completion_tokens_details": None},
    "cohere": {"prompt_tokens": 30.0, "completion_tokens": 20.0, "total_tokens": 50.0},
    "dashscope": {
        **_COUNTS,
        "prompt_tokens_details": {"cached_tokens": 10, "text_tokens": 30},
        "completion_tokens_details": {"reasoning_tokens": 5, "text_tokens": 20},
    },
    "deepseek": {**_COUNTS, **_CACHED, **_REASONED, "prompt_cache_hit_tokens": 10, "prompt_cache_miss_tokens": 20},
    "gemini": {"prompt_tokens": 30, "completion_tokens": 15, "total_tokens": 50},  # hidden thoughts: in the total alone
    "groq": {**_COUNTS, **_CACHED, **_REASONED, "queue_time": 0.1, "prompt_time": 0.1, "completion_time": 0.2},
    "litellm": {**_COUNTS, **_CACHED, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 0},
    "mistral": {**_COUNTS, "prompt_token_details": {"cached_tokens": 10}},  # misspelt there
    "moonshot": {**_COUNTS, **_REASONED, "cached_tokens": 10},
    "openrouter": {**_COUNTS, **_CACHED, **_REASONED, "cost": 0.00045, "is_byok": False},
    "perplexity": {**_COUNTS, "cost": {"input_tokens_cost": 0.0001, "output_tokens_cost": 0.0002, "total_cost": 0.0003}},
    "sglang": {**_COUNTS, "prompt_tokens_details": None, "reasoning_tokens": 5},
    "together": {**_COUNTS, "cached_tokens": 10, "reasoning_tokens": 5},
    "vllm": {**_COUNTS, "prompt_tokens_details": {"cached_tokens": 10, "multimodal_tokens": None}, **_REASONED},
    "xai": {
        "prompt_tokens": 30,
        "completion_tokens": 15,  # reasoning is beside it
        "total_tokens": 50,
        **_CACHED,
        **_REASONED,
        "cost_in_usd_ticks": 4500000,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a model, for ``FakeLLM``; ``FakeServer.reply`` takes the same.

    ``text``: a text, which a stream gives word by word, or a list of texts, which are its pieces. ``json``: anything but None;
    the text is that as JSON. ``tool_calls``: each a ``ToolCall``, or a mapping with ``name`` and ``arguments`` (a dict, or the
    very text that the model wrote), and ``id`` if it matters. ``reasoning``: said as ``reasoning_content``. ``usage``: the
    server's own mapping, sent as it is; None: no usage; a provider's name: the counts of a call (30 tokens before, 20 after)
    in that provider's shape. ``finish``: the finish_reason; None: "tool_calls" where there are any, else "stop".

    Raises:
        LLMConfigurationError: A field is not what it should be; the message names it.
    """

    text: str | Sequence[str] = ""
    json: Any = None
    tool_calls: Sequence[ToolCall | Mapping[str, Any]] = ()
    reasoning: str | None = None
    usage: Mapping[str, Any] | str | None = field(default_factory=PLAIN_USAGE.copy)
    finish: str | None = None

    def __post_init__(self) -> None:
        if self.json is not None and self.text:
            raise LLMConfigurationError("json is the text too: give one of the two.")
        if not isinstance(self.reasoning, str | None) or not isinstance(self.finish, str | None):
            raise LLMConfigurationError("reasoning and finish must be text or None.")
        dumped("the answer", self.whole(MODEL))  # what is wrong is found here, not in the server's thread

    def pieces(self) -> list[str]:
        """Return the text as a stream gives it."""
        if self.json is not None:
            return words_of(dumped("json", self.json))
        if isinstance(self.text, str):
            return words_of(self.text)
        if not isinstance(self.text, Sequence) or not all(isinstance(piece, str) for piece in self.text):
            raise LLMConfigurationError(f"text must be a text or a list of texts, not {_kind(self.text)}.")
        return list(self.text)

    def whole(self, model: str) -> dict[str, Any]:
        """Return the JSON of a ``chat.completion``."""
        calls = _calls(self.tool_calls)
        text = "".join(self.pieces())
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "finish_reason": self._finish()}
        answer = completion("chat.completion", [choice], model)
        usage = _usage(self.usage)
        return answer if usage is None else {**answer, "usage": usage}

    def chunks(self, model: str) -> list[dict[str, Any]]:
        """Return the JSON of each ``chat.completion.chunk`` that says something."""
        deltas: list[dict[str, Any]] = [{"reasoning_content": piece} for piece in words_of(self.reasoning or "")]
        deltas += [{"content": piece} for piece in self.pieces()]
        deltas += [{"tool_calls": [delta]} for i, call in enumerate(_calls(self.tool_calls)) for delta in _fragments(i, call)]
        return [chunk(delta, None, model) for delta in deltas]

    def ending(self, model: str) -> list[dict[str, Any]]:
        """Return the JSON of the chunks that end a stream: finish_reason, and usage."""
        usage = _usage(self.usage)
        counts = [] if usage is None else [{**completion("chat.completion.chunk", [], model), "usage": usage}]
        return [chunk({}, self._finish(), model), *counts]

    def _finish(self) -> str:
        return self.finish or ("tool_calls" if self.tool_calls else "stop")


def completion(kind: str, choices: list[dict[str, Any]], model: str = MODEL) -> dict[str, Any]:
    """Return what a ``chat.completion`` and its chunks have in common."""
    return {"id": "chatcmpl-fake", "object": kind, "created": 0, "model": model, "choices": choices}


def chunk(delta: Mapping[str, Any], finish: str | None = None, model: str = MODEL) -> dict[str, Any]:
    """Return one ``chat.completion.chunk``."""
    return completion("chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": finish}], model)


def event(payload: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def models() -> dict[str, Any]:
    """Return a list of one model, as ``/v1/models`` gives it."""
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "jazz"}]}


def embeddings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return an embedding for each input, the same for the same text: ``dimensions`` numbers (8 where none are named)."""
    texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    size, packed = asked.get("dimensions") or 8, asked.get("encoding_format") == "base64"
    data = [{"object": "embedding", "index": i, "embedding": _embedding(text, size, packed)} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "data": data, "model": asked.get("model", MODEL), "usage": usage}


def dumped(name: str, value: Any) -> str:
    """Return a value as JSON; ``LLMConfigurationError`` names it where that cannot be."""
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        reason = str(error)
    raise LLMConfigurationError(f"{name} cannot be said as JSON: {reason}.")


def _embedding(text: Any, size: int, packed: bool) -> list[float] | str:
    numbers = random.Random(repr(text))  # noqa: S311  # the same for the same text is all that is asked
    floats = [numbers.randrange(-128, 129) / 128 for _ in range(size)]  # exact as 32-bit floats too
    return base64.b64encode(struct.pack(f"<{size}f", *floats)).decode() if packed else floats


def _calls(tool_calls: Any) -> list[dict[str, Any]]:
    """Return tool calls as the wire has them, each with an id."""
    if isinstance(tool_calls, str | Mapping) or not isinstance(tool_calls, Sequence):
        raise LLMConfigurationError(f"tool_calls must be a list, not {_kind(tool_calls)}.")
    return [_call(i, call) for i, call in enumerate(tool_calls)]


def _call(i: int, call: Any) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = {"id": call.id, "name": call.name, "arguments": call.raw_arguments or call.arguments}
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str) or call.keys() - {"id", "name", "arguments"}:
        raise LLMConfigurationError(f"tool_calls[{i}] must be a ToolCall, or a mapping with name, arguments and id.")
    arguments = call.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = dumped(f"tool_calls[{i}]: arguments", arguments)
    return {"id": call.get("id") or f"call_{i}", "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _fragments(i: int, call: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one call as the deltas of a stream: who is called, then the arguments in two halves."""
    arguments = call["function"]["arguments"]
    half = len(arguments) // 2
    head = {"index": i, **call, "function": {"name": call["function"]["name"], "arguments": ""}}
    return [head, *({"index": i, "function": {"arguments": part}} for part in (arguments[:half], arguments[half:]) if part)]


def _usage(usage: Any) -> Mapping[str, Any] | None:
    if usage is None:
        return None
    if isinstance(usage, Mapping):
        return usage
    if not isinstance(usage, str) or usage not in BY_NAME:
        near = difflib.get_close_matches(str(usage), BY_NAME, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise LLMConfigurationError(f"usage must be a mapping, None or a provider's name, not {usage!r}{hint}")
    return USAGES.get(usage, _COUNTS)


def _kind(value: object) -> str:
    return type(value).__name__
