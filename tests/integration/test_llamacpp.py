"""Against llama.cpp, the server that most local models run on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from jazz_llm import LLMContextLengthError, LLMTimeoutError, Message, OpenAICompatibleLLM

from ..colours import Async, Sync
from ..test_doctor import table
from .proxies import serve_llamacpp

Colour = Sync | Async


def llm(tiny_model: str, **arguments: object) -> OpenAICompatibleLLM:
    return OpenAICompatibleLLM("tiny", base_url=tiny_model, **arguments)  # type: ignore[arg-type]


def test_a_whole_answer(colour: Colour, tiny_model: str) -> None:
    with llm(tiny_model) as model:
        response = colour.generate(model, [Message.system("Be brief."), Message.user("Hello")], max_tokens=20)
    assert response.text
    assert response.finish_reason in ("stop", "length")
    assert 0 < response.usage.completion_tokens <= 20
    assert response.usage.prompt_tokens > 0
    assert not response.usage.estimated
    assert response.raw["choices"][0]["message"]["content"] == response.text


def test_a_stream_says_the_same_as_the_whole_answer(colour: Colour, tiny_model: str) -> None:
    with llm(tiny_model, seed=7, temperature=0.9, max_tokens=50) as model:
        texts, stream = colour.stream(model)
        whole = colour.generate(model)
    assert stream.response is not None
    assert "".join(texts) == stream.response.text == whole.text
    assert stream.response.usage.completion_tokens == whole.usage.completion_tokens
    assert not stream.response.usage.estimated
    assert stream.response.metrics.time_to_first_token_ms is not None
    assert len(texts) > 1


def test_a_prompt_that_is_too_long_is_typed(colour: Colour, tiny_model: str) -> None:
    with llm(tiny_model) as model, pytest.raises(LLMContextLengthError) as caught:
        colour.generate(model, "long " * 5000)
    assert (caught.value.status_code, caught.value.attempts) == (400, 1)
    assert caught.value.type == "exceed_context_size_error"


def test_after_an_error_the_next_call_works(colour: Colour, tiny_model: str) -> None:
    """llama.cpp closes the connection after an error to a POST."""
    with llm(tiny_model, max_retries=0) as model:
        for _ in range(3):
            with pytest.raises(LLMContextLengthError):
                colour.generate(model, "long " * 5000)
            assert colour.generate(model, max_tokens=3).text


def test_leaving_early_frees_the_servers_slot(colour: Colour, tiny_model: str) -> None:
    """A reader that breaks off stops the generation: otherwise four of them would block the server's four slots."""
    with llm(tiny_model, max_tokens=4000, timeout=20) as model:
        for _ in range(12):
            colour.leave_early(model, after=2, extra_body={"ignore_eos": True})
        assert colour.generate(model, max_tokens=3).text


def test_many_streams_at_once(tiny_model: str) -> None:
    async def main() -> list[str]:
        async with llm(tiny_model) as model:
            responses = await asyncio.gather(*(model.astream("hi", max_tokens=10).finish() for _ in range(50)))
        return [response.text for response in responses]

    assert all(asyncio.run(main()))


def test_the_clock_runs_against_a_real_server_too(colour: Colour, tiny_model: str) -> None:
    with llm(tiny_model, deadline=0.15, max_tokens=4000) as model, pytest.raises(LLMTimeoutError) as caught:
        colour.stream(model, extra_body={"ignore_eos": True})
    assert caught.value.phase == "deadline"
    assert caught.value.partial is not None
    assert caught.value.partial.text


def test_the_list_of_models(colour: Colour, tiny_model: str) -> None:
    with llm(tiny_model) as model:
        (found,) = model.list_models() if isinstance(colour, Sync) else asyncio.run(model.alist_models())
        answer = colour.generate(model.with_options(model=found.id), max_tokens=1)
    assert found.id == answer.model
    assert found.owned_by == "llamacpp"
    assert found.context_length == found.raw["meta"]["n_ctx"]
    assert found.created


def test_the_other_endpoints_are_a_client_away(tiny_model: str) -> None:
    with llm(tiny_model) as model:
        answer = model.client.get("/v1/models")
        assert isinstance(answer, httpx.Response)
        assert answer.json()["data"][0]["id"]


def test_doctor_prints_a_true_table(tmp_path: Path) -> None:
    """Its vocabulary is too small for a grammar, and its template has no tools: the server says the one and hides the other."""
    pytest.importorskip("click", reason='click is not installed: pip install ".[cli]"')
    with serve_llamacpp(tmp_path, context=65_536) as model:  # long enough answers to stop one
        url = f"http://127.0.0.1:{model.port}"
        command = [sys.executable, "-m", "jazz_llm", "doctor", url, "--provider", "llamacpp"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = table(done.stdout)
    told = [(name, found[name][0]) for name in found if name not in ("endpoint", "model")]
    assert told == [
        ("models", "yes"),
        ("whole answers", "yes"),
        ("streaming", "yes"),
        ("usage in streams", "yes"),
        ("[DONE]", "yes"),
        ("json_schema", "no"),
        ("tools", "no"),
        ("stream stopped", "yes"),
        ("answer stopped", "yes"),
    ]
    assert "HTTP/1.1, asked for as a stream" in found["whole answers"][1]
