"""What the words of an error mean: facts.json, "error_words", "context_overflow_patterns", and what was seen since.

A machine's words (code, type, status, reason) are looked at first and say most. Prose comes second, without what it quotes:
that may be the caller's own prompt. Where neither says anything the status decides.
"""

from __future__ import annotations

import re

from ..errors import (
    LLMAuthenticationError,
    LLMContentFilterError,
    LLMContextLengthError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMOverloadedError,
    LLMPermissionDeniedError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMResponseError,
    LLMStatusError,
)

_BY_STATUS: dict[int, type[LLMStatusError]] = {
    401: LLMAuthenticationError,
    402: LLMQuotaExceededError,
    403: LLMPermissionDeniedError,
    404: LLMNotFoundError,
    408: LLMInternalError,
    424: LLMInternalError,
    425: LLMInternalError,
    429: LLMRateLimitError,
    498: LLMOverloadedError,  # Groq's flex tier
    501: LLMInvalidRequestError,
    503: LLMOverloadedError,
    529: LLMOverloadedError,
}
# Codes, each on a line of its own, lower-case; the first row that is found decides. Bare numbers are Zhipu's, those after
# "base_resp" MiniMax's.
_CODES: tuple[tuple[type[LLMStatusError], re.Pattern[str]], ...] = (
    (
        LLMContextLengthError,
        re.compile(
            r"context_?(?:length|window|size)_?(?:limit_?)?exceeded|exceed(?:ed)?_context|tokens_limit_reached"
            r"|prompt_too_long|^input_too_long|^1261$",
            re.MULTILINE,
        ),
    ),
    (
        LLMQuotaExceededError,
        re.compile(
            r"insufficient_?(?:user_)?(?:quota|balance|credits?|funds)|exceeded_current_quota"
            r"|billing_(?:hard_limit|error|not_active)|not_?enough_?(?:balance|credits?)|account_?overdue|arrearage"
            r"|budget_exceeded|exceededbudget|^allocationquota|(?:pre|post)paidbilloverdue|payment_required"
            r"|out_of_credits|usage_limit_(?:reached|exceeded)|^blocked_api_access$|^spend_|perday"
            r"|openrouter_(?:key_limit|workspace_budget|guardrail_budget|credits)"
            r"|^(?:1113|1304|1308|1309|1310)$|^base_resp (?:1008|2056)$",
            re.MULTILINE,
        ),
    ),
    (
        LLMContentFilterError,
        re.compile(
            r"content_?filter|content_?policy_?violation|data_?inspection_?failed|moderation_blocked|^invalid_prompt$"
            r"|flagged_input|responsibleaipolicyviolation|sensitive_?(?:words|content)_?detected|^prohibited_content$"
            r"|^1301$|^base_resp (?:1026|1027)$",
            re.MULTILINE,
        ),
    ),
    (
        LLMAuthenticationError,
        re.compile(
            r"(?:invalid|wrong|incorrect|missing)_?api_?key|api_key_invalid|^auth(?:entication)?_?error$|^unauthenticated$"
            r"|^unauthorized$|invalid_authentication|unrecognizedclient|invalidsignature|expiredtoken"
            r"|missingauthenticationtoken"
            r"|^no_db_connection$"  # LiteLLM without a database, for any key but its master's: BerriAI/litellm issue 12273
            r"|^base_resp (?:1004|2049)$",
            re.MULTILINE,
        ),
    ),
    (
        LLMNotFoundError,
        re.compile(
            r"model_?not_?(?:found|exist|available|supported)|^(?:unknown|unavailable|invalid)_model(?:_id|_name)?$"
            r"|model_decommissioned|deployment_?not_?found|resource_?not_?found|resource_does_not_exist|no_such_model|^1211$",
            re.MULTILINE,
        ),
    ),
    (
        LLMRateLimitError,
        re.compile(
            r"rate_?limit|too_?many_?(?:requests|tokens)|throttl|request_limit_exceeded|resource_?exhausted|in_flight_budget"
            r"|^limit_(?:requests|burst_rate)$|^(?:1302|1303|1305)$|^base_resp (?:1002|1039|1041|2045)$",
            re.MULTILINE,
        ),
    ),
    (
        LLMOverloadedError,
        re.compile(
            r"overloaded|^unavailable|service_?unavailable|capacity_exceeded|server_?busy|slow_down|modelnotready", re.MULTILINE
        ),
    ),
)
# Codes that say exactly what is wrong with the request: prose beside them is not asked.
_EXACT = re.compile(
    r"^(?:unsupported_(?:parameter|value)|unknown_parameter|missing_required_parameter|extra_forbidden|tool_use_failed"
    r"|json_validate_failed|invalid_(?:type|value|json|image\w*|function\w*|schema|json_schema|tool\w*)"
    r"|(?:string|array|integer|decimal|object)_(?:above|below)_\w+"
    r"|request_too_large|base_resp 2013)$",
    re.MULTILINE,
)
_OVERFLOW = (
    r"prompt is too long|prompt too long; exceeded|input is too long for requested model|exceeds the context window"
    r"|input token count.*exceeds the maximum|maximum prompt length is \d+|reduce the length of the (?:messages|input prompt)"
    r"|maximum context length|exceeds the limit of \d+|exceeds the available context size|greater than the context length"
    r"|longer than the (?:model's context|maximum model) length|context window exceeds limit|exceeded model token limit"
    r"|too large for model with \d+ maximum|context[_ ]length[_ ]exceeded|token limit exceeded|range of input length"
    r"|`inputs` tokens \+ `max_new_tokens` must be|total length of all messages is too long|prompt exceeds max length"
    r"|contextwindowexceeded|exceed_context_size|context size (?:has been|was) exceeded|exceeds? (?:the )?context window of"
    r"|context length is only \d+|input length \(\d+ tokens\) exceeds|exceeded max context length"
    r"|exceed context limit|exceeded this model context window limit"
)
_PROSE: tuple[tuple[type[LLMStatusError], re.Pattern[str]], ...] = (
    (LLMContextLengthError, re.compile(_OVERFLOW)),
    (
        LLMQuotaExceededError,
        re.compile(
            r"credit balance|run out of credits|out of credits|used all available credits|doesn't have any credits"
            r"|insufficient credits|not enough (?:balance|credit)|credit limit exceeded|spending (?:limit|cap)"
            r"|insufficient (?:account )?balance|key limit exceeded|budget has been exceeded|monthly included credits"
            r"|reached your specified (?:\w{1,20} )?api usage limits|reached your (?:session|hourly|daily|weekly|monthly) usage"
            r"|usage limit reached for|calls / month|free-models-per-day|daily free allocation|余额不足|欠费"
        ),
    ),
    (
        LLMContentFilterError,
        re.compile(
            r"content management policy|prompt was flagged|input was flagged|violates? usage guidelines|safety_check_type"
            r"|considered high risk|content exists risk|inappropriate content|rejected as a result of our safety system"
        ),
    ),
    (
        LLMAuthenticationError,
        re.compile(
            r"(?:incorrect|invalid|wrong|missing|expired) api[ -]?(?:key|token)|api[ -]key not valid"
            r"|api[ -]key (?:is|was) (?:invalid|missing|expired)|check the api-key"
            r"|invalid (?:access|auth|bearer|authentication|proxy server) token"
            r"|security token included in the request is (?:invalid|expired)"
        ),
    ),
    (
        LLMNotFoundError,
        re.compile(
            r"model not exist|unknown model|not a valid model|model identifier is invalid"
            r"|unexpected endpoint|no route for that uri|404 not_found"
            r"|no such model|model not found|model [^ ]{1,200} (?:does not exist|not found|is not found)"
            r"|has been decommissioned|invalid model(?: name| id| identifier)?(?: passed|:| '|\.|$)"
        ),
    ),
    (
        LLMRateLimitError,
        re.compile(r"rate limit (?:exceeded|reached)|too many requests|secondary rate limit|request was throttled"),
    ),
    (
        LLMOverloadedError,
        re.compile(
            r"overloaded|(?:temporarily|currently) unavailable|(?:over|at) capacity|server (?:is )?busy|no available capacity"
            r"|capacity temporarily exceeded"
        ),
    ),
)
# Where a code, or prose, of a class may stand against the status; None: everywhere. Every 429 stays a rate limit, every 401 a
# bad key, but that an empty account is one under any status.
_CODES_COUNT: dict[type[LLMStatusError], frozenset[int] | None] = {
    LLMAuthenticationError: frozenset({200, 400, 403, 422}),
    LLMRateLimitError: frozenset({200, 400, 402, 403, *range(500, 600)}),
    LLMOverloadedError: frozenset({200, 498, *range(500, 600)}),
}
_PROSE_COUNTS: dict[type[LLMStatusError], frozenset[int] | None] = {
    LLMQuotaExceededError: frozenset({200, *range(400, 600)} - {401}),
    LLMContentFilterError: frozenset({200, 400, 403, 422, 451}),
    LLMAuthenticationError: frozenset({200, 400, 403}),
    LLMNotFoundError: frozenset({200, 400, 404, 422, 500}),
    LLMRateLimitError: frozenset({200, 402, 403}),
    LLMOverloadedError: frozenset({200, *range(500, 600)}),
}
# One code that means something else at one provider: help.aliyun.com/zh/model-studio/error-code, "token-limit": a throttle
# that recovers within the minute, in OpenAI's words for an empty account.
_OTHERWISE: dict[tuple[str | None, int, str], type[LLMStatusError]] = {
    ("dashscope", 429, "insufficient_quota"): LLMRateLimitError,
}
# Types that are too general to stand against a status of HTTP's own, but all there is in the middle of a stream.
_BY_TYPE: tuple[tuple[type[LLMStatusError], re.Pattern[str]], ...] = (
    (
        LLMInvalidRequestError,
        re.compile(r"^(?:invalid_?(?:request|argument)|bad_?request|validation|unprocessable|base_resp 2013)", re.MULTILINE),
    ),
    (LLMPermissionDeniedError, re.compile(r"^(?:permission|access_?denied|forbidden)", re.MULTILINE)),
    (LLMNotFoundError, re.compile(r"^not_?found", re.MULTILINE)),
)
# What a message quotes: all of it between quotation marks, of backticks only what is no single name.
_QUOTED = re.compile(r"(?<!\w)(?:'[^']*'|\"[^\"]*\"|`[^`\s]*\s[^`]*`)(?!\w)")


def class_of(status: int, codes: list[str], prose: str, provider: str | None = None) -> type[LLMStatusError]:
    """Return the class of an answer; ``codes`` are a machine's words, ``prose`` is what people are told."""
    lines = "\n".join(codes)
    otherwise = next((cls for code in codes if (cls := _OTHERWISE.get((provider, status, code)))), None)
    if otherwise is not None:
        return otherwise
    found = _first(_CODES, _CODES_COUNT, status, lines)
    if found is None and not (400 <= status < 500 and _EXACT.search(lines)):
        found = _first(_PROSE, _PROSE_COUNTS, status, _QUOTED.sub("''", prose.lower()))
    if found is not None:
        return found
    return by_type(lines) if status == 200 else by_status(status)


def _first(
    rows: tuple[tuple[type[LLMStatusError], re.Pattern[str]], ...],
    counts: dict[type[LLMStatusError], frozenset[int] | None],
    status: int,
    words: str,
) -> type[LLMStatusError] | None:
    for cls, pattern in rows:
        where = counts.get(cls)
        if (where is None or status in where) and _may_be(cls, status) and pattern.search(words):
            return cls
    return None


def _may_be(cls: type[LLMStatusError], status: int) -> bool:
    return cls is LLMQuotaExceededError or status not in (401, 429)


def by_type(lines: str) -> type[LLMStatusError]:
    """Return the class of an error that came inside a 200 and names no status."""
    return next((cls for cls, pattern in _BY_TYPE if pattern.search(lines)), LLMInternalError)


def by_status(status: int) -> type[LLMStatusError]:
    """Return the class of a status whose body says nothing."""
    if status < 400:
        return LLMResponseError
    return _BY_STATUS.get(status, LLMInternalError if status >= 500 else LLMInvalidRequestError)
