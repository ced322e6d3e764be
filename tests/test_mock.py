from __future__ import annotations

import copy
import pickle
import threading

import pytest

from jazz_llm import LLMConfigurationError, LLMInvalidRequestError, OpenAICompatibleLLM

from .colours import Async, Sync


@pytest.fixture
def llm() -> OpenAICompatibleLLM:
    return OpenAICompatibleLLM("m")  # OpenAI, and no key


def test_answers_come_in_order_without_key_or_network(colour: Sync | Async, llm: OpenAICompatibleLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["one answer", "two\\n\\nwords  "]')
    response = colour.generate(llm, "x" * 40)
    assert (response.text, response.finish_reason, response.model) == ("one answer", "stop", "m")
    assert (response.usage.prompt_tokens, response.usage.estimated) == (10, True)
    texts, stream = colour.stream(llm)
    assert len(texts) > 1
    assert "".join(texts) == "two\n\nwords  "
    assert stream.response is not None
    assert stream.response.text == "two\n\nwords  "
    assert stream.response.usage.estimated


def test_past_the_end_is_an_error(colour: Sync | Async, llm: OpenAICompatibleLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["one"]')
    colour.generate(llm)
    with pytest.raises(LLMConfigurationError, match="1 answers, and this is call 2"):
        colour.generate(llm)


@pytest.mark.parametrize("text", ["one", '{"a": 1}', "[1]", '["a"', "null"])
def test_malformed_is_an_error(colour: Sync | Async, llm: OpenAICompatibleLLM, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", text)
    with pytest.raises(LLMConfigurationError, match="DEBUG_MOCK_RESPONSES"):
        colour.stream(llm)


def test_it_is_read_at_each_call_and_starts_again_when_it_changes(llm: OpenAICompatibleLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["a", "b"]')
    assert llm.generate("hi").text == "a"
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["c", "d"]')
    assert [llm.generate("hi").text, llm.generate("hi").text] == ["c", "d"]


def test_the_position_is_shared_with_copies_and_with_no_other_instance(llm: OpenAICompatibleLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["a", "b"]')
    assert llm.generate("hi").text == "a"
    assert llm.with_options(temperature=0.5).generate("hi").text == "b"
    assert pickle.loads(pickle.dumps(llm)).generate("hi").text == "a"
    assert copy.copy(llm).generate("hi").text == "a"


def test_threads_get_each_answer_once(llm: OpenAICompatibleLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", str([str(i) for i in range(200)]).replace("'", '"'))
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.extend(llm.generate("hi").text for _ in range(25))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got, key=int) == [str(i) for i in range(200)]


def test_bad_messages_are_still_bad(colour: Sync | Async, llm: OpenAICompatibleLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MOCK_RESPONSES", '["a"]')
    with pytest.raises(LLMInvalidRequestError, match="messages"):
        colour.generate(llm, [])
