"""Against llama.cpp, which binds a model of random weights to a grammar: structured output, tool calls, embeddings.

What such a model says is nonsense, so whatever keeps to a schema here does so because the server was told of it.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from jazz_llm import (
    LLMInternalError,
    LLMInvalidRequestError,
    LLMResponse,
    LLMStructuredOutputError,
    LLMToolCallError,
    Message,
    OpenAICompatibleLLM,
    StreamEventKind,
    ToolCall,
)

from ..colours import Async, Sync
from ..test_doctor import table

for needed in ("pydantic", "xllamacpp", "gguf"):
    pytest.importorskip(needed, reason=f'{needed} is not installed: pip install ".[test]"')

from pydantic import BaseModel, ConfigDict  # noqa: E402 - needs it

from ..tiny_model import serve_tiny  # noqa: E402 - the same

Colour = Sync | Async
SEEDS = range(4)
MORE_SEEDS = range(12)  # among which the model does the one and the other
ENOUGH = 3000  # tokens: no answer here is as long, so none is cut


@pytest.fixture(scope="module")
def tools_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the tiny model that can be bound to a grammar and calls tools; return its base URL."""
    with serve_tiny(tmp_path_factory.mktemp("tools"), tools=True) as base_url:
        yield base_url


@pytest.fixture(params=[None, "llamacpp"], ids=["unknown provider", "llamacpp"])
def llm(request: pytest.FixtureRequest, tools_model: str) -> Iterator[OpenAICompatibleLLM]:
    """Make a client, once for a server that nothing is known of and once for what it is."""
    with OpenAICompatibleLLM("tiny", base_url=tools_model, provider=request.param, max_tokens=ENOUGH) as made:
        yield made


@pytest.fixture
def plain(tools_model: str) -> Iterator[OpenAICompatibleLLM]:
    """Make a client of a server that nothing is known of."""
    with OpenAICompatibleLLM("tiny", base_url=tools_model, max_tokens=ENOUGH) as made:
        yield made


def answers(colour: Colour, llm: OpenAICompatibleLLM, **options: Any) -> Iterator[LLMResponse[Any]]:
    """Make all kinds of calls, with several seeds."""
    for seed in SEEDS:
        yield colour.generate(llm, seed=seed, **options)
        texts, stream = colour.stream(llm, seed=seed, **options)
        assert stream.response is not None
        assert "".join(texts) == stream.response.text
        yield stream.response
        events, stream_of_events = colour.events(llm, seed=seed, **options)
        assert [event.kind for event in events].count(StreamEventKind.DONE) == 1
        assert events[-1].response is not None
        assert events[-1].response is stream_of_events.response
        yield events[-1].response


# --- structured output ---------------------------------------------------------------------------------------------


class Player(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    plays: Literal["piano", "trumpet"]


class Song(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str
    bars: int
    swings: bool
    players: list[Player]
    composer: Player | None


@dataclass
class Note:
    letter: Literal["c", "d", "e"]
    beats: int


class Chord(TypedDict):
    root: Literal["c", "d", "e"]
    notes: list[int]


COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"], "additionalProperties": False}


def test_a_model_comes_back_valid_every_time_in_every_call(colour: Colour, llm: OpenAICompatibleLLM) -> None:
    for response in answers(colour, llm, response_format=Song):
        assert isinstance(response.parsed, Song)
        assert response.parsed == Song.model_validate_json(response.text)
        assert response.finish_reason == "stop"


@pytest.mark.parametrize(("given", "kind"), [(Note, Note), (Chord, dict), (COLOUR, dict)], ids=["dataclass", "TypedDict", "schema"])
def test_so_does_every_other_kind_of_type(colour: Colour, llm: OpenAICompatibleLLM, given: Any, kind: type) -> None:
    for response in answers(colour, llm, response_format=given):
        assert type(response.parsed) is kind
        assert json.loads(response.text) == (vars(response.parsed) if kind is Note else response.parsed)
        if given is COLOUR:
            assert response.parsed in ({"colour": "red"}, {"colour": "blue"})


def test_the_object_so_far_grows_into_the_whole(plain: OpenAICompatibleLLM) -> None:
    with plain.stream_events("hi", response_format=Song, seed=2) as stream:
        seen = [stream.parsed_so_far for _ in stream]
    assert stream.response is not None
    assert stream.response.parsed is not None
    keys = [list(so_far) for so_far in seen if so_far]
    assert keys[-1] == list(Song.model_fields)
    assert all(shown == keys[-1][: len(shown)] for shown in keys)
    assert len({json.dumps(so_far) for so_far in seen}) > 5


def test_an_answer_cut_short_is_typed_and_kept(colour: Colour, llm: OpenAICompatibleLLM) -> None:
    for call in (colour.generate, colour.stream):
        with pytest.raises(LLMStructuredOutputError, match="cut short") as caught:
            call(llm, response_format=Song, max_tokens=4)
        assert caught.value.partial is not None
        assert caught.value.text == caught.value.partial.text != ""
        assert caught.value.partial.finish_reason == "length"


def test_without_a_format_the_model_says_no_json(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    """Which shows that it is the server's grammar that makes the answers above."""
    for seed in SEEDS:
        with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
            json.loads(colour.generate(plain, seed=seed, max_tokens=50).text)


def test_a_vocabulary_that_cannot_spell_the_grammar_is_the_servers_error(colour: Colour, tiny_model: str) -> None:
    """The plain tiny model puts a space before every prompt, and so before what the grammar is to begin with."""
    with OpenAICompatibleLLM("tiny", base_url=tiny_model) as llm, pytest.raises(LLMInvalidRequestError, match="initialize samplers"):
        colour.generate(llm, response_format=COLOUR)


# --- tools ---------------------------------------------------------------------------------------------------------


def weather(city: str, days: int) -> str:
    """Tell the weather.

    Args:
        city: Where.
        days: How many.
    """
    return f"sunny for {days} days in {city}"


PAINT = {"type": "function", "function": {"name": "paint", "description": "Paint the wall.", "parameters": COLOUR}}
TOOLS = [weather, PAINT]


def check(call: ToolCall) -> None:
    assert json.loads(call.raw_arguments) == call.arguments
    if call.name == "weather":
        assert {name: type(value) for name, value in call.arguments.items()} == {"city": str, "days": int}
    else:
        assert call.name == "paint"
        assert call.arguments in ({"colour": "red"}, {"colour": "blue"})


def named(calls: list[ToolCall]) -> list[tuple[str, str]]:
    return [(call.name, call.raw_arguments) for call in calls]


def test_required_calls_come_whole_in_every_call_and_several_at_once(colour: Colour, llm: OpenAICompatibleLLM) -> None:
    counts = set()
    for response in answers(colour, llm, tools=TOOLS, tool_choice="required"):
        assert response.finish_reason == "tool_calls"
        for call in response.tool_calls:
            check(call)
        ids = [call.id for call in response.tool_calls]
        assert all(ids)
        assert len(set(ids)) == len(ids)
        assert named(response.message.tool_calls or []) == named(response.tool_calls)
        counts.add(len(ids))
    assert min(counts) >= 1
    assert max(counts) > 1


def test_streamed_calls_are_the_same_as_whole_ones(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    for seed in SEEDS:
        whole = colour.generate(plain, seed=seed, tools=TOOLS, tool_choice="required")
        texts, stream = colour.stream(plain, seed=seed, tools=TOOLS, tool_choice="required")
        assert stream.response is not None
        assert named(stream.response.tool_calls) == named(whole.tool_calls)
        assert "".join(texts).strip() == whole.text.strip()


def test_events_of_calls_are_their_pieces_and_then_the_call(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    for seed in SEEDS:
        events, _ = colour.events(plain, seed=seed, tools=TOOLS, tool_choice="required")
        response = events[-1].response
        assert response is not None
        candidates = [event.tool_call for event in events if event.kind is StreamEventKind.TOOL_CALL_CANDIDATE]
        assert candidates == response.tool_calls
        pieces: dict[str, str] = {}
        for event in events:
            if event.kind is StreamEventKind.TOOL_CALL_DELTA:
                assert event.tool_call is not None
                pieces[event.tool_call.id] = pieces.get(event.tool_call.id, "") + event.text
        assert pieces == {call.id: call.raw_arguments for call in response.tool_calls}


def test_auto_leaves_it_to_the_model(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    counts = []
    for seed in MORE_SEEDS:
        response = colour.generate(plain, seed=seed, tools=TOOLS)
        assert response.finish_reason == ("tool_calls" if response.tool_calls else "stop")
        for call in response.tool_calls:
            check(call)
        counts.append(len(response.tool_calls))
    assert min(counts) == 0
    assert max(counts) > 0


def test_none_means_no_call(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    for seed in SEEDS:
        assert not colour.generate(plain, seed=seed, tools=TOOLS, tool_choice="none").tool_calls


def test_a_named_choice_is_kept_or_the_error_says_that_it_was_not(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    """llama.cpp knows tool_choice as a word only, and takes a name for "auto"."""
    kept = 0
    for seed in MORE_SEEDS:
        try:
            response = colour.generate(plain, seed=seed, tools=TOOLS, tool_choice="paint")
        except LLMToolCallError as error:
            assert "did not call 'paint'" in str(error)
            assert error.partial is not None
            assert "paint" not in [call.name for call in error.partial.tool_calls]
        else:
            kept += 1
            assert "paint" in [call.name for call in response.tool_calls]
    assert 0 < kept < len(MORE_SEEDS)


def test_a_call_cut_short_is_typed_and_kept(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    tokens_of_all = colour.generate(plain, seed=1, tools=[weather], tool_choice="required").usage.completion_tokens
    for call in (colour.generate, colour.stream):
        begun = 0
        for tokens in range(tokens_of_all - 36, tokens_of_all - 12, 6):  # the end mark alone is some 14 of them
            try:
                call(plain, seed=1, tools=[weather], tool_choice="required", max_tokens=tokens)
            except LLMToolCallError as error:
                assert error.partial is not None
                assert error.partial.finish_reason == "length"
                if error.tool_call is not None:
                    begun += 1
                    assert error.tool_call.raw_arguments.startswith("{")
                    assert "was cut short" in str(error)
        assert begun


def test_where_the_template_has_no_tools_required_is_not_taken_for_done(colour: Colour, tiny_model: str) -> None:
    """llama.cpp then takes tools and tool_choice, and says nothing of doing nothing about them."""
    with OpenAICompatibleLLM("tiny", base_url=tiny_model, max_tokens=20) as llm:
        for call in (colour.generate, colour.stream):
            with pytest.raises(LLMToolCallError, match="did not call a tool") as caught:
                call(llm, tools=TOOLS, tool_choice="required")
            assert caught.value.tool_call is None
            assert caught.value.partial is not None
            assert caught.value.partial.text


def test_the_answer_to_a_call_is_taken(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    asked: list[Any] = [Message.system("Be brief."), Message.user("What is the weather?")]
    first = colour.generate(plain, asked, seed=1, tools=TOOLS, tool_choice="required")
    results = [Message.tool(call, "sunny") for call in first.tool_calls]
    second = colour.generate(plain, [*asked, first.message, *results], seed=1, tools=TOOLS, tool_choice="none")
    assert second.text
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def paint(colour: Literal["red", "blue"]) -> dict[str, str]:
    """Paint the wall."""
    return {"painted": colour}


def run_tools(colour: Colour, llm: OpenAICompatibleLLM, **options: Any) -> LLMResponse[Any]:
    """Return where the loop came to, at its end or at ``max_turns``: a model of random weights may call for ever."""
    try:
        return llm.run_tools("hi", **options) if isinstance(colour, Sync) else asyncio.run(llm.arun_tools("hi", **options))
    except LLMToolCallError as error:
        assert "max_turns (3)" in str(error)
        assert error.partial is not None
        return error.partial


def test_the_loop_runs_what_is_called_and_tells_the_model(colour: Colour, plain: OpenAICompatibleLLM) -> None:
    for seed in SEEDS[:2]:
        run = run_tools(colour, plain, tools=[weather, paint], tool_choice="required", max_turns=3, seed=seed)
        assert run.tool_results
        for result in run.tool_results:
            check(result.call)
            assert result.error is None
            if result.call.name == "weather":
                assert result.output == weather(**result.call.arguments)
            else:
                assert json.loads(result.output) == paint(**result.call.arguments)
        asked = [call.id for message in run.transcript for call in message.tool_calls or []]
        assert [message.tool_call_id for message in run.transcript if message.role == "tool"] == asked
        assert 2 <= sum(message.role == "assistant" for message in run.transcript) <= 3


# --- the command line's doctor -------------------------------------------------------------------------------------


def test_doctor_sees_both(tools_model: str) -> None:
    pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')
    command = [sys.executable, "-m", "jazz_llm", "doctor", tools_model, "--provider", "llamacpp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = table(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (found["json_schema"][0], found["tools"][0]) == ("yes", "yes")


# --- embeddings ----------------------------------------------------------------------------------------------------


def embed(colour: Colour, llm: OpenAICompatibleLLM, texts: Any, **arguments: Any) -> list[list[float]]:
    return llm.embed(texts, **arguments) if isinstance(colour, Sync) else asyncio.run(llm.aembed(texts, **arguments))


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_tiny(tmp_path_factory.mktemp("embeddings"), embeddings=True) as base_url:
        yield base_url


def test_embeddings_in_both_formats_are_the_same(colour: Colour, embedding_model: str) -> None:
    texts = ["jazz", "a longer text about jazz", "été 東京 🎷", "jazz"]
    found = []
    for provider in (None, "llamacpp"):  # floats, base64
        with OpenAICompatibleLLM("tiny", base_url=embedding_model, provider=provider) as llm:
            found.append(embed(colour, llm, texts))
            assert embed(colour, llm, texts, batch_size=1)[1] == pytest.approx(found[-1][1], abs=1e-5)
    as_floats, as_base64 = found
    assert [len(one) for one in as_floats] == [64] * 4
    assert all(math.isclose(math.hypot(*one), 1.0, abs_tol=1e-4) for one in as_floats)
    assert as_floats[0] == pytest.approx(as_floats[3], abs=1e-5)
    assert as_floats[0] != pytest.approx(as_floats[1], abs=1e-2)
    for one, other in zip(as_floats, as_base64, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_a_server_without_embeddings_says_so(colour: Colour, tools_model: str) -> None:
    with OpenAICompatibleLLM("tiny", base_url=tools_model) as llm:
        with pytest.raises((LLMInternalError, LLMInvalidRequestError), match="embedding"):
            embed(colour, llm, "hi")
