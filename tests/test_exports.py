from __future__ import annotations

import inspect

import jazz_llm

# CONTRACT.md, sections 1 to 6, less what later versions bring (tools, structured output).
PUBLIC = ["OpenAICompatibleLLM", "RetryPolicy", "Message", "Tool", "ToolCall", "ToolResult", "Choice", "LLMResponse", "LLMUsage", "CallMetrics", "RateLimits", "ModelInfo", "GenerateOptions", "TextStream", "AsyncTextStream", "EventStream", "AsyncEventStream", "StreamEvent", "StreamEventKind", "normalize_usage", "Hooks", "RequestRecord", "RetryRecord", "ResponseRecord", "ErrorRecord", "__version__"]


def test_every_public_name_is_exported_and_nothing_else() -> None:
    errors = {name for name, value in vars(jazz_llm.errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert set(jazz_llm.__all__) == {*PUBLIC, *errors}
    assert list(jazz_llm.__all__) == sorted(jazz_llm.__all__)
    assert all(hasattr(jazz_llm, name) for name in jazz_llm.__all__)


def test_every_public_name_says_what_it_is() -> None:
    for name in set(jazz_llm.__all__) - {"__version__"}:
        assert getattr(jazz_llm, name).__doc__, name
