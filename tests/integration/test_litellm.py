"""What LiteLLM's proxy does beside what every server does (``test_servers.py``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMContextLengthError,
    LLMInternalError,
    LLMNotFoundError,
    LLMRateLimitError,
    LLMStatusError,
    RetryPolicy,
)

from ..colours import Async, Sync
from ..test_doctor import table
from .servers import RAISES, SAYS, Server

Colour = Sync | Async

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

ERRORS: dict[str, tuple[type[LLMStatusError], int, int]] = {  # class, status, tries of two
    "RateLimitError": (LLMRateLimitError, 429, 2),
    "InternalServerError": (LLMInternalError, 500, 2),
    "ContextWindowExceededError": (LLMContextLengthError, 400, 1),
}


def test_a_mocked_model(colour: Colour, litellm_server: Server) -> None:
    with litellm_server.client(model="mock") as llm:
        whole = colour.generate(llm)
        texts, stream = colour.stream(llm)
    assert stream.response is not None
    assert whole.text == "".join(texts) == stream.response.text == SAYS
    assert (whole.model, whole.finish_reason) == ("mock", "stop")
    assert (whole.metrics.streamed_internally, stream.response.metrics.streamed_internally) == (True, False)
    for usage in (whole.usage, stream.response.usage):
        assert (usage.estimated, usage.completion_tokens) == (False, 4)


def test_each_call_has_the_id_that_litellm_logs(colour: Colour, litellm_server: Server) -> None:
    with litellm_server.client(model="mock") as llm:
        whole, (_, stream) = colour.generate(llm), colour.stream(llm)
    assert stream.response is not None
    ids = {whole.request_id, stream.response.request_id}
    assert len(ids) == 2
    assert all(UUID.fullmatch(call_id or "") for call_id in ids)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", RAISES)
def test_errors_are_typed(colour: Colour, litellm_server: Server, name: str, streamed: bool) -> None:
    cls, status, tries = ERRORS[name]
    with litellm_server.client(model=name, max_retries=1, retry=RetryPolicy(initial=0.01)) as llm:
        with pytest.raises(cls) as caught:
            (colour.stream if streamed else colour.generate)(llm)
    assert type(caught.value) is cls
    assert (caught.value.status_code, caught.value.attempts) == (status, tries)
    assert UUID.fullmatch(caught.value.request_id or "")


def test_an_unknown_model_is_not_found(colour: Colour, litellm_server: Server) -> None:
    """It says so with a 400."""
    with litellm_server.client(model="nonesuch") as llm, pytest.raises(LLMNotFoundError) as caught:
        colour.generate(llm)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("key", ["sk-ffffffffffffffffffffffffffffffff", None])
def test_a_wrong_key(colour: Colour, litellm_server: Server, key: str | None) -> None:
    """Without a database, the answer to a key that is not the master's is 400 "No connected db."; to none, 401."""
    with litellm_server.client(api_key=key) as llm, pytest.raises(LLMAuthenticationError) as caught:
        colour.generate(llm)
    assert (caught.value.status_code, caught.value.retryable) == (400 if key else 401, False)


def test_a_wrong_key_where_keys_are_looked_up(colour: Colour, allowing_litellm: Server) -> None:
    with allowing_litellm.client(api_key="sk-ffffffffffffffffffffffffffffffff") as llm:
        with pytest.raises(LLMAuthenticationError) as caught:
            colour.generate(llm)
    assert caught.value.status_code == 401


def test_over_tls_the_server_picks_http1(colour: Colour, allowing_litellm: Server) -> None:
    """uvicorn knows no HTTP/2, which we offer."""
    with allowing_litellm.client(max_tokens=5) as llm:
        response = colour.generate(llm)
    assert response.metrics.endpoint.startswith("https://")
    assert response.metrics.http_version == "HTTP/1.1"
    assert response.text


def test_mock_response_of_a_request(colour: Colour, allowing_litellm: Server) -> None:
    with allowing_litellm.client() as llm:
        whole = colour.generate(llm, mock_response="said for this call")
        texts, _ = colour.stream(llm, mock_response="said for this stream")
        spoken = colour.generate(llm, max_tokens=3)
    assert whole.text == "said for this call"
    assert "".join(texts) == "said for this stream"
    assert spoken.usage.completion_tokens == 3  # by the model itself


@pytest.mark.parametrize("name", RAISES)
def test_mock_response_of_a_request_raises(colour: Colour, allowing_litellm: Server, name: str) -> None:
    with allowing_litellm.client() as llm, pytest.raises(ERRORS[name][0]):
        colour.generate(llm, mock_response=f"litellm.{name}")


def test_doctor_prints_a_true_table(litellm_server: Server) -> None:
    """The model behind it has neither schemas nor tools, and LiteLLM tells nobody what it is working on."""
    command = [sys.executable, "-m", "jazz_llm", "doctor", litellm_server.url, "--provider", "litellm", "--model", "tiny"]
    environment = {**os.environ, "LITELLM_API_KEY": litellm_server.key or ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = table(done.stdout)
    assert {name: found[name][0] for name in found if name not in ("endpoint", "model")} == {
        "models": "yes",
        "whole answers": "yes",
        "streaming": "yes",
        "usage in streams": "yes",
        "[DONE]": "yes",
        "json_schema": "no",
        "tools": "no",
        "stream stopped": "unclear",
        "answer stopped": "unclear",
    }
    assert "HTTP/1.1, asked for as a stream" in found["whole answers"][1]
