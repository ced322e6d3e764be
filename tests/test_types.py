from __future__ import annotations

from jazz_llm import LLMResponse, Message, ToolCall


def test_messages_are_made_by_role() -> None:
    call = ToolCall("call_1", "weather", {"city": "Oslo"})
    assert Message.system("a") == Message("system", "a")
    assert Message.user("b") == Message("user", "b")
    assert Message.assistant(None, [call]) == Message("assistant", None, tool_calls=[call])
    assert Message.tool(call, "12 C") == Message("tool", "12 C", tool_call_id="call_1")


def test_a_fake_response_needs_its_text_alone() -> None:
    fake = LLMResponse(text="hello")
    assert (fake.text, fake.usage.total_tokens, fake.finish_reason, fake.tool_calls) == ("hello", 0, None, [])
    assert LLMResponse(text="a").raw is not LLMResponse(text="b").raw
