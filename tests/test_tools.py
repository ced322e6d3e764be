from __future__ import annotations

import dataclasses
import enum
import functools
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypedDict

import orjson
import pydantic
import pytest
from pydantic import Field

from jazz_llm import (
    LLMCapabilityError,
    LLMConfigurationError,
    LLMContentFilterError,
    LLMInvalidRequestError,
    LLMResponse,
    LLMStructuredOutputError,
    LLMToolCallError,
    OpenAICompatibleLLM,
    Tool,
    ToolCall,
)
from jazz_llm.functions import described
from jazz_llm.request import Call, prepare
from jazz_llm.schema import SchemaError, schema_of
from jazz_llm.testing import FakeServer, Reply, Request, sse_chunk
from jazz_llm.toolbox import Toolbox

from .colours import Async, Sync
from .test_response import DONE, answer, chunk, failure

Colour = Sync | Async


class Unit(enum.Enum):
    METRIC = "metric"
    IMPERIAL = "imperial"


@dataclasses.dataclass
class Place:
    city: str
    country: str = "NO"


class Trip(pydantic.BaseModel):
    stops: list[Place]
    note: str | None = None


class Box(TypedDict):
    width: int


def weather(city: str, unit: Unit = Unit.METRIC) -> str:
    """Say what the weather is.

    Args:
        city: Where.
    """
    return f"{city}: 12 {unit.name}"


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    made = Tool.from_function(function).parameters
    assert isinstance(made, dict)
    return made


# --- functions


def test_the_hints_of_a_function_are_its_schema() -> None:
    def plan(
        a: int,
        b: Literal["x", "y"],
        c: Unit,
        d: Optional[float],  # noqa: UP045  # as people write it
        e: list[str],
        f: dict[str, int],
        g: Place,
        h: Trip,
        i: Box,
    ) -> None: ...

    made = parameters(plan)
    assert made["properties"] == {
        "a": {"type": "integer"},
        "b": {"type": "string", "enum": ["x", "y"]},
        "c": {"$ref": "#/$defs/Unit"},
        "d": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "e": {"type": "array", "items": {"type": "string"}},
        "f": {"type": "object", "additionalProperties": {"type": "integer"}},
        "g": {"$ref": "#/$defs/Place"},
        "h": {"$ref": "#/$defs/Trip"},
        "i": {"$ref": "#/$defs/Box"},
    }
    assert (made["type"], made["additionalProperties"], made["required"]) == ("object", False, list("abcdefghi"))
    assert made["$defs"]["Unit"]["enum"] == ["metric", "imperial"]
    assert made["$defs"]["Trip"]["properties"]["stops"]["items"] == {"$ref": "#/$defs/Place"}
    assert made["$defs"]["Box"]["required"] == ["width"]


def test_defaults_are_told_and_not_required() -> None:
    def plan(a: str, b: int = 3, c: Unit = Unit.IMPERIAL, d: Place = Place("Oslo"), e: int = None) -> None: ...  # type: ignore[assignment]  # noqa: B008, RUF013

    made = parameters(plan)
    assert made["required"] == ["a"]
    assert [made["properties"][name]["default"] for name in "bcde"] == [3, "imperial", {"city": "Oslo", "country": "NO"}, None]
    assert made["properties"]["e"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]


def test_an_argument_without_a_hint_may_be_anything() -> None:
    def plan(a, b=1): ...  # type: ignore[no-untyped-def]

    assert parameters(plan)["properties"] == {"a": {}, "b": {"default": 1}}


GOOGLE = """Do it.

At once.

Args:
    a: The first,
        on two lines.
    b (int): The second.

Returns:
    Nothing.
"""
NUMPY = """Do it.

At once.

Parameters
----------
a : str
    The first,
    on two lines.
b : int, optional
    The second.

Returns
-------
None
"""
REST = """Do it.

At once.

:param a: The first,
    on two lines.
:param int b: The second.
:returns: Nothing.
"""


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, REST], ids=["google", "numpy", "rest"])
def test_the_docstring_describes_the_tool_and_its_arguments(text: str) -> None:
    def act(a: str, b: int = 1) -> None: ...

    act.__doc__ = text
    tool = Tool.from_function(act)
    assert (tool.name, tool.description) == ("act", "Do it.\n\nAt once.")
    assert {name: value.get("description") for name, value in tool.parameters["properties"].items()} == {"a": "The first,\non two lines.", "b": "The second."}


def test_annotated_words_come_before_the_docstrings() -> None:
    def act(a: Annotated[str, "From Annotated."], b: Annotated[int, Field(description="From Field.", ge=1)], c: int = Field(3, description="In the default.")) -> int:
        """Do it.

        Args:
            a: no
            b: no
            c: no
        """
        return c

    made = parameters(act)["properties"]
    assert [made[name]["description"] for name in "abc"] == ["From Annotated.", "From Field.", "In the default."]
    assert (made["b"]["minimum"], made["c"]["default"]) == (1, 3)
    assert Toolbox([act]).parse(ToolCall("1", "act", {}, '{"a": "x", "b": 1}')) == {"a": "x", "b": 1, "c": 3}


class Desk:
    """The class."""

    def look(self, at: str) -> str:
        """Look."""
        return at

    async def __call__(self, of: int) -> int:
        return of


async def fetch(url: str) -> str:
    return url


@pytest.mark.parametrize(
    ("function", "name", "description", "arguments"),
    [
        (Desk().look, "look", "Look.", {"at"}),
        (Desk(), "Desk", "The class.", {"of"}),
        (fetch, "fetch", "", {"url"}),
        (functools.partial(weather, unit=Unit.IMPERIAL), "weather", "Say what the weather is.", {"city"}),
        (functools.partial(weather, "Oslo"), "weather", "Say what the weather is.", {"unit"}),
        (functools.partial(functools.partial(Desk().look, at="x")), "look", "Look.", set()),
    ],
    ids=["method", "object", "async", "partial by name", "partial by place", "partials"],
)
def test_what_can_be_called_can_be_a_tool(function: Any, name: str, description: str, arguments: set[str]) -> None:
    for _ in range(2):  # made, and known
        tool = Tool.from_function(function)
        assert (tool.name, tool.description, set(tool.parameters["properties"])) == (name, description, arguments)


def test_names_that_pydantic_keeps_for_itself_are_fine() -> None:
    def act(schema: str, json: int, model_config: int, _x: int, copy: int = 1) -> None: ...

    call = ToolCall("1", "act", {}, '{"schema": "s", "json": 1, "model_config": 2, "_x": 3}')
    assert Toolbox([act]).parse(call) == {"schema": "s", "json": 1, "model_config": 2, "_x": 3, "copy": 1}


class Database: ...


def starred(*words: str) -> None: ...
def named(**words: str) -> None: ...
def placed(a: int, /) -> None: ...
def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def opened(database: Database) -> None: ...
def called(back: Callable[[int], int]) -> None: ...
def defaulted(a: Any = object()) -> None: ...  # noqa: B008


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (starred, "starred(): *args: a model gives arguments by name ('words')"),
        (named, "named(): **kwargs"),
        (placed, "placed(): positional-only"),
        (unknown, "unknown(): NameError: name 'Nowhere' is not defined"),
        (opened, "Database"),
        (called, "called()"),
        (defaulted, "is not JSON serializable"),
        (Desk, "must be a function, a Tool or a dict"),
        (5, "must be a function, a Tool or a dict"),
        (lambda x: x, "not '<lambda>'"),
    ],
)
def test_a_function_that_can_be_no_tool_is_refused_before_sending(function: Any, says: str) -> None:
    with pytest.raises(LLMInvalidRequestError) as caught:
        wire(tools=[function])
    assert says in caught.value.message
    assert caught.value.status_code is None


def test_a_functions_schema_is_made_once() -> None:
    assert described(weather) is described(weather)
    assert described(Desk().look) is described(Desk().look)
    assert described(Desk.look).schema.json != described(Desk().look).schema.json  # there self is an argument

    class Odd(Desk):
        __hash__ = None  # type: ignore[assignment]

    assert described(Odd()).name == "Odd"


def test_a_tool_made_of_a_function_is_the_callers_to_change() -> None:
    tool = Tool.from_function(weather)
    tool.parameters["properties"].clear()  # type: ignore[attr-defined]
    assert "city" in parameters(weather)["properties"]


def test_tools_need_the_extra_and_say_so(tmp_path: Path) -> None:
    (tmp_path / "docstring_parser.py").write_text("raise ImportError('none', name='docstring_parser')")
    code = """
import sys; sys.path.insert(0, sys.argv[1])
from jazz_llm import Tool, LLMConfigurationError
def f(): ...
try: Tool.from_function(f)
except LLMConfigurationError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert 'pip install "jazz_llm[schema]"' in done.stdout


def test_a_missing_pydantic_is_no_fault_of_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(LLMConfigurationError, match="jazz_llm\\[schema\\]"):
        Tool.from_function(lambda x: x)


# --- on the wire

OPENAI = {"provider": "openai", "api_key": "k"}
FETCH = {"type": "function", "function": {"name": "fetch", "parameters": {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}}}
SEARCH = {"type": "web_search", "web_search": {"enable": True}}


def call_of(arguments: dict[str, Any] | None = None, **options: Any) -> Call:
    return prepare(OpenAICompatibleLLM("m", **(arguments or {"base_url": "http://localhost:1"}))._config, "hi", options, streams=False)


def wire(arguments: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(call_of(arguments, **options).body)
    return body


def strict_of(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}}


def test_functions_tools_and_dicts_go_out_side_by_side() -> None:
    mine = Tool("mine", parameters={"type": "object"}, function=len)
    tools = wire(tools=[weather, mine, FETCH, SEARCH])["tools"]
    assert tools[0] == {"type": "function", "function": {"name": "weather", "description": "Say what the weather is.", "parameters": parameters(weather)}}
    assert tools[1:] == [{"type": "function", "function": {"name": "mine", "parameters": {"type": "object"}}}, FETCH, SEARCH]


def test_no_tools_are_not_sent() -> None:
    for none in (None, [], ()):
        call = call_of(tools=none)
        assert "tools" not in orjson.loads(call.body)
        assert call.tools is None


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        (weather, "must be a list"),
        ([weather, Tool("weather")], "tools[1]: there are two tools called 'weather'"),
        ([FETCH, FETCH], "two tools called 'fetch'"),
        ([Tool("a b")], "tools[0]: a tool's name is"),
        ([Tool("é")], "tools[0]: a tool's name is"),
        ([Tool("x\n")], "tools[0]: a tool's name is"),
        ([Tool("x" * 65)], "tools[0]: a tool's name is"),
        ([Tool("")], "tools[0]: a tool's name is"),
        ([{"type": "function", "function": {"name": 5}}], "tools[0]: a tool's name is"),
        ([{"type": "function", "name": "flat", "parameters": {}}], "tools[0]: a tool as a dict has the form"),
        ([{"name": "old"}], "tools[0]: a tool as a dict has the form"),
        ([Tool("x", parameters={"type": "nothing"})], "tools[0].parameters"),
        ([Tool("x", parameters={"$ref": "https://example.org/s"})], "tools[0].parameters"),
        ([Tool("x", parameters={"default": object()})], "tools[0].parameters"),
        ([{"type": "function", "function": {"name": "x", "parameters": {"type": 5}}}], "tools[0].function.parameters"),
    ],
)
def test_bad_tools_are_refused_before_sending(tools: Any, says: str) -> None:
    with pytest.raises(LLMInvalidRequestError) as caught:
        wire(tools=tools)
    assert says in caught.value.message


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_the_modes_of_tool_choice_go_out_as_they_are(choice: str) -> None:
    assert wire(tools=[weather], tool_choice=choice)["tool_choice"] == choice


def test_a_tools_name_as_the_choice_names_it() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("weather", named):
        call = call_of(tools=[weather, FETCH], tool_choice=choice)
        assert orjson.loads(call.body)["tool_choice"] == named
        assert call.tools is not None
        assert call.tools.forced == "weather"
    assert wire(tools=[weather, SEARCH], tool_choice="$web_search")["tool_choice"]["function"]["name"] == "$web_search"
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}
    assert wire(tools=[weather], tool_choice=allowed)["tool_choice"] == allowed


@pytest.mark.parametrize("choice", ["wether", {"type": "function", "function": {"name": "wether"}}, {"function": {"name": ["weather"]}}, 5, ["weather"]])
def test_a_choice_that_is_no_tool_is_refused(choice: Any) -> None:
    with pytest.raises(LLMInvalidRequestError, match=r"tool_choice: there is no tool .*; the tools are weather"):
        wire(tools=[weather], tool_choice=choice)


@pytest.mark.parametrize("choice", ["required", "weather_of", {"type": "function", "function": {"name": "weather_of"}}])
def test_a_provider_that_cannot_be_made_to_call_a_tool_is_not_asked(choice: Any) -> None:
    tool = {"type": "function", "function": {"name": "weather_of", "parameters": {"type": "object", "properties": {}}}}
    with FakeServer() as server, OpenAICompatibleLLM("m", base_url=server.url, provider="ollama") as llm:
        with pytest.raises(LLMCapabilityError, match="ollama cannot be made to call a tool"):
            llm.generate("hi", tools=[tool], tool_choice=choice)
        assert not server.requests
        assert llm.generate("hi", tools=[tool], tool_choice="auto").text


@pytest.mark.parametrize("tool", [strict_of("s"), Tool("s", parameters={"type": "object", "properties": {"a": {"type": "string"}}}, strict=True)])
def test_a_strict_tool_needs_a_promise(tool: Any) -> None:
    for choice in (None, "auto"):
        for elsewhere in (None, {"provider": "groq", "api_key": "k"}):
            with pytest.raises(LLMCapabilityError, match='tool_choice is "auto"'):
                wire(elsewhere, tools=[tool], tool_choice=choice)
        sent = wire(OPENAI, tools=[tool], tool_choice=choice)["tools"][0]["function"]
        assert (sent["strict"], sent["parameters"]["required"], sent["parameters"]["additionalProperties"]) == (True, ["a"], False)
    for choice in ("required", "s", "none"):
        assert wire(tools=[tool], tool_choice=choice)["tools"][0]["function"]["strict"] is True


def test_what_the_strict_subset_lacks_is_named() -> None:
    def act(anything: dict[str, int]) -> None: ...

    tool = dataclasses.replace(Tool.from_function(act), strict=True)
    with pytest.raises(LLMCapabilityError, match="act"):
        wire(OPENAI, tools=[tool])
    assert wire(OPENAI, tools=[act])["tools"][0]["function"]["parameters"]["properties"]


# --- what the model makes of them


def toolbox(*tools: Any, choice: Any = None) -> Toolbox:
    box = Toolbox(list(tools))
    box.choose(choice)
    return box


def called_with(*calls: tuple[str, str], finish: str = "tool_calls", **more: Any) -> bytes:
    fragments = [{"index": i, "id": f"c{i}", "type": "function", "function": {"name": name, "arguments": raw}} for i, (name, raw) in enumerate(calls)]
    return chunk(delta={"tool_calls": fragments, **more}) + chunk(finish=finish) + DONE


def test_calls_that_fit_are_an_answer() -> None:
    result = answer(called_with(("weather", '{"city": "Oslo"}'), ("fetch", '{"url": "u"}')), tools=toolbox(weather, FETCH))
    assert [(call.name, call.arguments) for call in result.tool_calls] == [("weather", {"city": "Oslo"}), ("fetch", {"url": "u"})]


@pytest.mark.parametrize("tool", [weather, {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}, "additionalProperties": False}}}], ids=["function", "dict"])
@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("true", "must be a JSON object, not true"),  # vLLM with tool_choice "required"
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('"{}"', "must be a JSON object"),
        ('{"city": "Os', "not JSON"),
        ('{"city": "Oslo"} {"city": "Rome"}', "not JSON"),
        ('```json\n{"city": "Oslo"}\n```', "not JSON"),
        ("", "city"),
        ("{}", "city"),
        ('{"city": 5}', "string"),
        ('{"city": "Oslo", "town": 1}', "town"),
        ('{"city": "Oslo", "city": "Rome"}', "twice"),
        ('{"city": NaN}', "NaN"),
        (f'{{"city": {"9" * 5000}}}', "not JSON"),
        ('{"city": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
    ],
    ids=lambda value: value[:30],
)
def test_arguments_that_do_not_fit(tool: Any, raw: str, says: str) -> None:
    error = failure(called_with(("weather", raw)), tools=toolbox(tool))
    assert isinstance(error, LLMToolCallError)
    assert error.tool_call is not None
    assert (error.tool_call.name, error.tool_call.raw_arguments) == ("weather", raw)
    assert says in error.errors[0]
    assert says in error.message
    assert isinstance(error.partial, LLMResponse)
    assert len(error.message) < 1500
    assert pickle.loads(pickle.dumps(error)).errors == error.errors


def test_a_tool_that_there_is_not() -> None:
    error = failure(called_with(("wether", "{}")), tools=toolbox(weather, FETCH))
    assert isinstance(error, LLMToolCallError)
    assert error.errors == ["there is no tool 'wether'; the tools are weather, fetch"]


def test_where_the_provider_runs_tools_itself_their_names_are_not_known_here() -> None:
    assert answer(called_with(("$web_search", '{"q": 1}')), tools=toolbox(weather, SEARCH)).tool_calls[0].arguments == {"q": 1}
    assert isinstance(failure(called_with(("$web_search", "1")), tools=toolbox(weather, SEARCH)), LLMToolCallError)


def test_no_arguments_are_none_where_none_are_needed() -> None:
    def now() -> str: ...  # type: ignore[empty-body]

    bare = {"type": "function", "function": {"name": "bare"}}
    for raw in ("", "  ", "{}"):
        result = answer(called_with(("now", raw), ("bare", raw)), tools=toolbox(now, bare))
        assert [call.arguments for call in result.tool_calls] == [{}, {}]
    assert toolbox(bare).parse(ToolCall("1", "bare", {}, '{"a": 1}')) == {"a": 1}


def test_a_call_cut_short() -> None:
    cut = called_with(("weather", '{"city": "Os'), finish="length")
    error = failure(cut, tools=toolbox(weather))
    assert isinstance(error, LLMToolCallError)
    assert "was cut short (finish_reason 'length')" in error.message
    assert error.partial is not None
    assert error.partial.finish_reason == "length"
    assert answer(called_with(("weather", '{"city": "Oslo"}'), finish="length"), tools=toolbox(weather)).tool_calls
    assert answer(chunk("text") + chunk(finish="length") + DONE, tools=toolbox(weather)).finish_reason == "length"


def test_a_content_filter_that_leaves_no_call_whole() -> None:
    for stream in (called_with(("weather", '{"ci'), finish="content_filter"), chunk("I") + chunk(finish="content_filter") + DONE):
        error = failure(stream, tools=toolbox(weather))
        assert isinstance(error, LLMContentFilterError)
        assert error.partial is not None
    whole = called_with(("weather", '{"city": "Oslo"}'), finish="content_filter")
    assert len(answer(whole, tools=toolbox(weather)).tool_calls) == 1
    half = called_with(("weather", '{"city": "Oslo"}'), ("weather", '{"ci'), finish="content_filter")
    assert isinstance(failure(half, tools=toolbox(weather)), LLMToolCallError)


def test_a_refusal_with_tools_is_an_answer() -> None:
    for finish in ("stop", "refusal"):  # the second counts as content_filter
        stream = chunk(delta={"refusal": "No."}) + chunk(finish=finish) + DONE
        for choice in (None, "required", "weather"):
            assert answer(stream, tools=toolbox(weather, choice=choice)).refusal == "No."


@pytest.mark.parametrize("finish", ["stop", "tool_calls"])
def test_a_forced_call(finish: str) -> None:
    stream = called_with(("weather", '{"city": "Oslo"}'), finish=finish)  # a named choice may finish with "stop"
    for choice in ("required", "weather"):
        result = answer(stream, tools=toolbox(weather, FETCH, choice=choice))
        assert (result.finish_reason, result.tool_calls[0].name) == ("tool_calls", "weather")


def test_a_forced_call_that_did_not_come() -> None:
    text = chunk("Sunny.") + chunk(finish="stop") + DONE
    for choice, says in (("required", "did not call a tool"), ("weather", "did not call 'weather'")):
        error = failure(text, tools=toolbox(weather, choice=choice))
        assert isinstance(error, LLMToolCallError)
        assert says in error.message
        assert error.tool_call is None
        assert error.partial is not None
        assert error.partial.text == "Sunny."
    other = failure(called_with(("fetch", '{"url": "u"}')), tools=toolbox(weather, FETCH, choice="weather"))
    assert isinstance(other, LLMToolCallError)
    for choice in (None, "auto", "none"):
        assert answer(text, tools=toolbox(weather, choice=choice)).text == "Sunny."


def test_calls_of_every_choice_are_checked() -> None:
    fragments = [{"index": 0, "id": "c", "function": {"name": "weather", "arguments": "[]"}}]
    stream = chunk("a") + chunk(delta={"tool_calls": fragments}, index=1) + chunk(finish="stop") + chunk(finish="tool_calls", index=1) + DONE
    assert isinstance(failure(stream, choices=2, tools=toolbox(weather)), LLMToolCallError)


def test_calls_beside_response_format_come_before_the_answer() -> None:
    schema = schema_of(Place)
    calls = answer(called_with(("weather", '{"city": "Oslo"}')), schema=schema, tools=toolbox(weather))
    assert (calls.parsed, len(calls.tool_calls)) == (None, 1)
    assert answer(chunk('{"city": "Oslo"}') + chunk(finish="stop") + DONE, schema=schema, tools=toolbox(weather)).parsed == Place("Oslo")
    assert isinstance(failure(chunk("Oslo") + chunk(finish="stop") + DONE, schema=schema, tools=toolbox(weather)), LLMStructuredOutputError)


def test_a_function_gets_what_its_hints_say_and_a_schema_of_the_users_plain_json() -> None:
    call = ToolCall("1", "weather", {}, '{"city": "Oslo", "unit": "imperial"}')
    made = Tool.from_function(weather)
    for tool in (weather, made, dataclasses.replace(made, description="Else."), pickle.loads(pickle.dumps(made))):
        assert toolbox(tool).parse(call) == {"city": "Oslo", "unit": Unit.IMPERIAL}
    own = Tool("weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}}, function=weather)
    assert toolbox(own).parse(call) == {"city": "Oslo", "unit": "imperial"}
    with pytest.raises(SchemaError):
        toolbox(own).parse(ToolCall("1", "weather", {}, '{"city": 1}'))


def test_without_tools_calls_are_as_they_came() -> None:
    assert answer(called_with(("weather", "[]"))).tool_calls[0].raw_arguments == "[]"


# --- through the client


async def cut_short(request: Request, reply: Reply) -> None:
    """Say something, then half a call."""
    await reply.start(200, {"content-type": "text/event-stream"})
    for delta in ("Let", " me"):
        await reply.send(sse_chunk(delta))
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}}
    await reply.send(sse_chunk({"tool_calls": [call]}) + sse_chunk({}, "length") + b"data: [DONE]\n\n")
    await reply.end()


def test_a_stream_gives_its_texts_and_then_raises(colour: Colour) -> None:
    with FakeServer(cut_short) as server, OpenAICompatibleLLM("m", base_url=server.url) as llm:
        with pytest.raises(LLMToolCallError) as caught:
            colour.stream(llm, tools=[weather])
        assert "".join(caught.value.seen) == "Let me"  # type: ignore[attr-defined]
        assert caught.value.partial is not None
        assert (caught.value.partial.text, caught.value.partial.metrics.status_code) == ("Let me", 200)
        with pytest.raises(LLMToolCallError):
            colour.generate(llm, tools=[weather])
        assert len(server.requests) == 2  # neither was tried again


async def with_thoughts(request: Request, reply: Reply) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":  "Oslo"}'}, "extra_content": {"google": {"thought_signature": "sig"}}}
    message = {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call]}
    await reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})


def test_the_message_goes_back_as_it_came(colour: Colour) -> None:
    with FakeServer(with_thoughts) as server, OpenAICompatibleLLM("m", "k", server.url, provider="deepseek") as llm:
        first = colour.generate(llm, tools=[weather])
        colour.generate(llm, ["hi", first.message][1:], tools=[weather])
        sent = server.requests[1].json()["messages"][0]
    assert sent["reasoning_content"] == "Hm."
    assert sent["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":  "Oslo"}'}, "extra_content": {"google": {"thought_signature": "sig"}}}]


def test_nothing_is_imported_for_a_call_without_tools() -> None:
    code = "import sys, jazz_llm; from jazz_llm.request import prepare; prepare(jazz_llm.OpenAICompatibleLLM('m', 'k')._config, 'hi', {'seed': 1}, streams=True); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "jsonschema", "docstring_parser", "jazz_llm.toolbox", "jazz_llm.functions", "jazz_llm.tool_loop"} & set(loaded)


@pytest.mark.parametrize("choice", ["required", "weather", {"type": "function", "function": {"name": "weather"}}])
def test_a_choice_without_tools_is_refused(choice: Any) -> None:
    llm = OpenAICompatibleLLM("m", base_url="http://localhost")
    for tools in (None, []):
        with pytest.raises(LLMInvalidRequestError, match="there are no tools"):
            llm.generate("hi", tools=tools, tool_choice=choice)
    call = prepare(llm._config, "hi", {"tool_choice": choice, "extra_body": {"tools": [{}]}}, streams=False)
    assert orjson.loads(call.body)["tool_choice"] == choice
