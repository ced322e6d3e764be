"""Bytes of an answer -> text, :class:`LLMResponse` or the error they mean. Nothing here waits.

``decoder`` reads answers (``events`` as typed events), ``choice`` and ``deltas`` what is in them; ``failures`` reads errors,
with ``headers`` for what the headers say and ``words`` for what the words mean; ``redaction`` takes the key out of them.
"""

from .decoder import Decoder, inflated
from .failures import MAX_ERROR_BODY, error_from
from .headers import rate_limits_of, request_id_of
from .redaction import redacted, spans, tell_no_key, without

__all__ = [
    "MAX_ERROR_BODY",
    "Decoder",
    "error_from",
    "inflated",
    "rate_limits_of",
    "redacted",
    "request_id_of",
    "spans",
    "tell_no_key",
    "without",
]
