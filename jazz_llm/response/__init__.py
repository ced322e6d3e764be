"""Bytes of an answer -> text, :class:`LLMResponse` or the error they mean. Nothing here waits.

``decoder`` reads answers, ``choice`` and ``deltas`` what is in them; ``failures`` reads errors.
"""

from .decoder import Decoder, inflated
from .failures import MAX_ERROR_BODY, error_from, rate_limits_of, redacted, request_id_of

__all__ = ["MAX_ERROR_BODY", "Decoder", "error_from", "inflated", "rate_limits_of", "redacted", "request_id_of"]
