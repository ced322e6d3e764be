"""The cases of ``tests/conformance/data``: what providers really send, and what is to become of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jazz_llm import LLMError, LLMResponse
from jazz_llm.response import Decoder

DATA = Path(__file__).parent / "data"
FACTS = json.loads((DATA / "facts.json").read_text("utf-8"))


def cases(*names: str) -> list[dict[str, Any]]:
    """Return the cases of the files, in their order."""
    return [case for name in names for case in json.loads((DATA / name).read_text("utf-8"))]


def provider_of(case: dict[str, Any]) -> str:
    """Return the registry's name of the provider that a case is from."""
    return FACTS["provider_aliases"].get(case["provider"], case["provider"])


def body_of(case: dict[str, Any]) -> bytes:
    """Return the bytes of a stream case."""
    return base64.b64decode(case["bytes_b64"]) if "bytes_b64" in case else case["bytes_text"].encode()


def decoder_for(case: dict[str, Any], **options: Any) -> Decoder:
    decoder = Decoder(streams=case.get("stream_requested", True), provider=provider_of(case), **options)
    decoder.begin(case.get("headers", {}))
    return decoder


def decode(decoder: Decoder, reads: list[bytes]) -> tuple[str, LLMResponse[Any], LLMError | None]:
    """Feed the reads and the end; return the texts joined, the answer as far as it came, and the error."""
    texts: list[str] = []
    for read in reads:
        if decoder.over:
            break
        texts += decoder.feed(read)
    texts += decoder.end()
    try:
        return "".join(texts), decoder.result(), None
    except LLMError as error:
        assert error.partial is not None
        return "".join(texts), error.partial, error
