"""What vLLM does beside what every server does (``test_servers.py``); only where JAZZ_LLM_VLLM says how to get at one."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from pydantic import BaseModel

from jazz_llm import LLMInvalidRequestError, LLMNotFoundError

from ..colours import Async, Sync
from .servers import Server

Colour = Sync | Async


def test_an_unknown_model_is_not_found(colour: Colour, vllm_server: Server) -> None:
    with vllm_server.client(model="nonesuch") as llm, pytest.raises(LLMNotFoundError) as caught:
        colour.generate(llm)
    assert (caught.value.status_code, caught.value.param) == (404, "model")


def test_the_list_says_how_long_the_context_is(colour: Colour, vllm_server: Server) -> None:
    with vllm_server.client() as llm:
        models = asyncio.run(llm.alist_models()) if isinstance(colour, Async) else llm.list_models()
    assert [(model.id, model.context_length) for model in models] == [(vllm_server.name, vllm_server.context)]


def test_more_tokens_than_the_context_has(colour: Colour, vllm_server: Server) -> None:
    with vllm_server.client() as llm, pytest.raises(LLMInvalidRequestError) as caught:
        colour.generate(llm, max_tokens=vllm_server.context + 1)
    assert (caught.value.status_code, caught.value.param) == (400, "max_tokens")


def test_the_template_gets_its_arguments(colour: Colour, vllm_server: Server) -> None:
    """Where the model shall not think, the prompt has the end of thinking in it, as Qwen3's has."""
    with vllm_server.client(max_tokens=1) as llm:
        plain = colour.generate(llm).usage.prompt_tokens
        told = colour.generate(llm, chat_template_kwargs={"enable_thinking": False}).usage.prompt_tokens
        _, stream = colour.stream(llm, chat_template_kwargs={"enable_thinking": False})
        by_effort = colour.generate(llm, reasoning_effort="none").usage.prompt_tokens
    assert stream.response is not None
    assert plain < told == stream.response.usage.prompt_tokens == by_effort


@pytest.mark.parametrize("provider", ["vllm", None])
def test_an_answer_fits_its_schema(colour: Colour, vllm_server: Server, provider: str | None) -> None:
    class Paint(BaseModel):
        colour: Literal["red", "green", "blue"]
        coats: Literal[1, 2]

    with vllm_server.client(provider=provider, max_tokens=60, extra_body={}) as llm:
        assert isinstance(colour.generate(llm, response_format=Paint).parsed, Paint)
        _, stream = colour.stream(llm, response_format=Paint.model_json_schema())
    assert stream.response is not None
    assert Paint.model_validate(stream.response.parsed)
