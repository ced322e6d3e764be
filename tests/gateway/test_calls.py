"""A generate request as the arguments of a call."""

from __future__ import annotations

from typing import Any

import pytest

from jazz_llm.errors import LLMInvalidRequestError, LLMNotFoundError
from jazz_llm.gateway.calls import messages_of, options_of
from jazz_llm.gateway.protocol import Generate
from jazz_llm.gateway.session import Loaded
from jazz_llm.providers import BY_NAME

TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u", "name": "Ann"},
    {"role": "user", "content": "v", "name": "Bob B."},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b", "name": None},
    {"role": "function", "content": "1", "name": "add"},
]


def names(provider: str | None, character: object = "Jazz", talk: list[Any] = TALK) -> list[object]:
    request = Generate("1", talk, {"character_name": character})
    return [message.get("name") for message in messages_of(request, BY_NAME.get(provider or ""))]


def test_names_go_where_they_are_taken() -> None:
    assert names("openai") == [None, "Ann", None, "Jazz", "Jazz", "add"]
    for provider in ("mistral", "groq", "azure"):
        assert names(provider) == [None, None, None, None, None, "add"]
    assert names(None) == [None, "Ann", "Bob B.", None, None, "add"]


@pytest.mark.parametrize("character", [None, "", 1, [], "Miss Jazz", "x" * 65])
def test_a_character_name_that_is_none_is_left_out(character: object) -> None:
    assert names("openai", character)[3] is None


def test_what_is_no_message_is_left_to_the_client() -> None:
    assert messages_of(Generate("1", [1, "x"], {}), BY_NAME["openai"]) == [1, "x"]


TWO = Loaded(None, ("a", "b"))


def options(params: dict[str, Any], *, stream: bool = False, loaded: Loaded = TWO) -> dict[str, Any]:
    return options_of(Generate("1", TALK, params, stream=stream), loaded)


def test_what_the_published_client_sends() -> None:
    asked = {"model_id": "m", "character_name": "AI", "temperature": 1.0, "max_output_length": 200, "stop_tokens": ["\r", "\n"], "timeout_ms": 60000}
    common = {"model": "m", "temperature": 1.0, "max_tokens": 200, "stop": ["\r", "\n"]}
    assert options(asked) == {**common, "timeout": 60, "deadline": 60}
    assert options(asked, stream=True) == {**common, "timeout": 60, "first_token_timeout": 60}


def test_null_is_no_limit_and_nothing_is_the_default() -> None:
    assert options({"model_id": "m", "stop_tokens": None, "timeout_ms": None, "temperature": None}) == {
        "model": "m",
        "timeout": {"read": None},
        "first_token_timeout": None,
        "deadline": None,
    }
    assert options({"model_id": "m", "stop_tokens": []}) == {"model": "m"}


def test_a_whole_number_may_be_written_as_a_float() -> None:
    limit = options({"model_id": "m", "max_output_length": 200.0})["max_tokens"]
    assert (limit, type(limit)) == (200, int)


def test_a_model_that_is_not_named() -> None:
    assert options({"model_id": ""}, loaded=Loaded(None, ("a", "b"), "b"))["model"] == "b"
    assert options({}, loaded=Loaded(None, ("only",)))["model"] == "only"
    with pytest.raises(LLMNotFoundError, match="get_models"):
        options({"model_id": ""})


@pytest.mark.parametrize(
    "params",
    [{"stop_tokens": [1, 2]}, {"stop_tokens": ["a", 1]}, {"model_id": 1}]
    + [{"max_output_length": value} for value in (0, -1, 0.5, "200", True, float("inf"), float("nan"))]
    + [{"timeout_ms": value} for value in (0, -1, "1", True, [], float("inf"), float("nan"), 1e13)],
)
def test_params_that_mean_nothing(params: dict[str, Any]) -> None:
    with pytest.raises(LLMInvalidRequestError, match=r"params\."):
        options({"model_id": "m", **params})
