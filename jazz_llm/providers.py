"""What is known about each provider, as data: a new provider is a new row.

Sources stand beside the rows; where there is none it is the provider's own API reference. A ``{name}`` in a base URL stands for
a part of the host or path that the user has to fill in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any


EFFORT = "{effort}"  # in ``thinking``: the word that the user gave
ANY = "*"

_THINKING_TYPE = {"none": {"thinking": {"type": "disabled"}}, ANY: {"thinking": {"type": "enabled"}}}
_ENABLE_THINKING = {"none": {"enable_thinking": False}, ANY: {"enable_thinking": True}}
_TEMPLATE_THINKING = {"none": {"chat_template_kwargs": {"enable_thinking": False}}}  # other words: reasoning_effort itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider; every field but the first three is a difference from plain OpenAI.

    Where it is: ``hosts`` are more hosts that are this provider; ``key_header`` carries the key (None: ``Authorization:
    Bearer``); ``models_path`` leads from the root to the list of models; ``request_ids`` are the headers that name a request,
    best first.

    What it is sent: ``renames`` gives an option the name that it takes; ``thinking`` says for a ``reasoning_effort`` what is
    sent in its place (``ANY``: for every other one); ``stream_options``: whether it takes ``stream_options.include_usage``;
    ``developer``: whether it knows that role, else it is sent as ``system``; ``text_only``: content must be text, no parts;
    ``ignores``: options that it drops without a word, so that they are refused here.

    What it does: ``streams_inside``: it notices only while it streams that nobody listens any more, or answers properly only
    then, so whole answers are asked for as streams too; ``closes_after_stream``: it promises to keep an HTTP/1.1 connection and
    closes it after each stream; ``reasoning_outside``: reasoning tokens are beside ``completion_tokens``; ``echo``: fields of
    the assistant's message that it wants back during a tool loop.
    """

    name: str
    base_url: str
    key_env: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    key_header: str | None = None
    models_path: str = "/models"
    request_ids: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    thinking: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stream_options: bool = True
    developer: bool = True
    text_only: bool = False
    ignores: frozenset[str] = frozenset()
    streams_inside: bool = False
    closes_after_stream: bool = False
    reasoning_outside: bool = False
    echo: tuple[str, ...] = ()


PROVIDERS: tuple[Provider, ...] = (
    Provider(
        name="openai",
        base_url="https://api.openai.com/v1",
        key_env=("OPENAI_API_KEY",),
        renames={"max_tokens": "max_completion_tokens"},
    ),
    # The header is api-key, and Bearer is for Entra tokens: openai-python lib/azure.py.
    Provider(
        name="azure",
        base_url="https://{resource}.openai.azure.com/openai/v1",
        key_env=("AZURE_OPENAI_API_KEY",),
        hosts=("{resource}.services.ai.azure.com", "{resource}.cognitiveservices.azure.com"),
        key_header="api-key",
        renames={"max_tokens": "max_completion_tokens"},
        request_ids=("apim-request-id", "x-ms-client-request-id"),
    ),
    Provider(
        name="groq",
        base_url="https://api.groq.com/openai/v1",
        key_env=("GROQ_API_KEY",),
        renames={"max_tokens": "max_completion_tokens"},
    ),
    # V3.2 and later want reasoning_content back beside tool calls: api-docs.deepseek.com, "Thinking with tools".
    Provider(
        name="deepseek",
        base_url="https://api.deepseek.com",
        key_env=("DEEPSEEK_API_KEY",),
        echo=("reasoning_content",),
        renames={"max_completion_tokens": "max_tokens"},
        thinking=_THINKING_TYPE,
        developer=False,
        request_ids=("x-ds-trace-id",),
    ),
    # stream_options was answered 422 extra_forbidden, and usage comes without it: mistralai/client-python.
    Provider(
        name="mistral",
        base_url="https://api.mistral.ai/v1",
        key_env=("MISTRAL_API_KEY",),
        stream_options=False,
        renames={"max_completion_tokens": "max_tokens", "seed": "random_seed"},
        request_ids=("mistral-correlation-id", "x-kong-request-id"),
    ),
    Provider(
        name="together",
        base_url="https://api.together.xyz/v1",
        key_env=("TOGETHER_API_KEY",),
        hosts=("api.together.ai",),
    ),
    Provider(name="fireworks", base_url="https://api.fireworks.ai/inference/v1", key_env=("FIREWORKS_API_KEY",)),
    # "Cancellation only works for streaming requests", others are billed for the complete response: openrouter.ai/docs.
    Provider(
        name="openrouter",
        base_url="https://openrouter.ai/api/v1",
        key_env=("OPENROUTER_API_KEY",),
        streams_inside=True,
        thinking={ANY: {"reasoning": {"effort": EFFORT}}},
        request_ids=("x-generation-id",),
    ),
    Provider(name="xai", base_url="https://api.x.ai/v1", key_env=("XAI_API_KEY",)),
    Provider(
        name="cerebras",
        base_url="https://api.cerebras.ai/v1",
        key_env=("CEREBRAS_API_KEY",),
        renames={"max_tokens": "max_completion_tokens"},
        developer=False,
        request_ids=("x-request-id", "inference-id"),
    ),
    # Usage is on every chunk, and sonar-deep-research counts reasoning beside it: docs.perplexity.ai.
    Provider(
        name="perplexity",
        base_url="https://api.perplexity.ai",
        key_env=("PERPLEXITY_API_KEY", "PPLX_API_KEY"),
        stream_options=False,
        reasoning_outside=True,
    ),
    Provider(
        name="gemini",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key_env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    Provider(
        name="vertex",
        base_url="https://{location}-aiplatform.googleapis.com/v1/projects/{project}/locations/{location}/endpoints/openapi",
        key_env=(),
        hosts=("aiplatform.googleapis.com",),
    ),
    Provider(
        name="anthropic",
        base_url="https://api.anthropic.com/v1",
        key_env=("ANTHROPIC_API_KEY",),
        request_ids=("request-id",),
    ),
    Provider(
        name="cohere",
        base_url="https://api.cohere.ai/compatibility/v1",
        key_env=("CO_API_KEY", "COHERE_API_KEY"),
        hosts=("api.cohere.com",),
    ),
    Provider(
        name="moonshot",
        base_url="https://api.moonshot.ai/v1",
        key_env=("MOONSHOT_API_KEY",),
        hosts=("api.moonshot.cn",),
        thinking=_THINKING_TYPE,
    ),
    Provider(
        name="zhipu",
        base_url="https://open.bigmodel.cn/api/paas/v4",
        key_env=("ZHIPUAI_API_KEY",),
        thinking=_THINKING_TYPE,
    ),
    Provider(
        name="zai",
        base_url="https://api.z.ai/api/paas/v4",
        key_env=("ZAI_API_KEY",),
        thinking=_THINKING_TYPE,
    ),
    Provider(
        name="dashscope",
        base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
        key_env=("DASHSCOPE_API_KEY",),
        hosts=("dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com"),
        thinking=_ENABLE_THINKING,
        request_ids=("x-request-id", "eagleeye-traceid"),
    ),
    Provider(
        name="minimax",
        base_url="https://api.minimax.io/v1",
        key_env=("MINIMAX_API_KEY",),
        hosts=("api.minimaxi.com",),
    ),
    Provider(name="sambanova", base_url="https://api.sambanova.ai/v1", key_env=("SAMBANOVA_API_KEY",)),
    Provider(
        name="nvidia",
        base_url="https://integrate.api.nvidia.com/v1",
        key_env=("NVIDIA_API_KEY",),
        request_ids=("nvcf-reqid",),
    ),
    Provider(name="huggingface", base_url="https://router.huggingface.co/v1", key_env=("HF_TOKEN",)),
    Provider(
        name="novelai",
        base_url="https://text.novelai.net/oa/v1",
        key_env=("NOVELAI_API_KEY",),
        thinking=_ENABLE_THINKING,
        text_only=True,
        ignores=frozenset({"tools", "response_format"}),
        streams_inside=True,
    ),
    Provider(
        name="bedrock",
        base_url="https://bedrock-runtime.{region}.amazonaws.com/openai/v1",
        key_env=("AWS_BEARER_TOKEN_BEDROCK",),
        hosts=("bedrock-mantle.{region}.api.aws",),
        request_ids=("x-amzn-requestid",),
    ),
    # A whole answer goes on at the provider when its caller has gone: BerriAI/litellm issue 37140.
    Provider(
        name="litellm",
        base_url="http://localhost:4000",
        key_env=("LITELLM_API_KEY",),
        streams_inside=True,
        request_ids=("x-litellm-call-id",),
    ),
    Provider(
        name="cloudflare",
        base_url="https://api.cloudflare.com/client/v4/accounts/{account_id}/ai/v1",
        key_env=("CLOUDFLARE_API_TOKEN",),
        hosts=("gateway.ai.cloudflare.com",),
        models_path="/../models/search",
    ),
    # Models that run on Bedrock answer stream_options with 400: docs.databricks.com.
    Provider(
        name="databricks",
        base_url="https://{host}.cloud.databricks.com/serving-endpoints",
        key_env=("DATABRICKS_TOKEN",),
        hosts=("{host}.azuredatabricks.net", "{host}.gcp.databricks.com"),
        stream_options=False,
        request_ids=("x-request-id", "x-amzn-requestid"),
    ),
    Provider(
        name="github",
        base_url="https://models.github.ai/inference",
        key_env=("GITHUB_TOKEN",),
        hosts=("models.inference.ai.azure.com",),
        models_path="/../catalog/models",
    ),
    Provider(
        name="snowflake",
        base_url="https://{account}.snowflakecomputing.com/api/v2/cortex/v1",
        key_env=("SNOWFLAKE_TOKEN",),
    ),
    Provider(
        name="deepinfra",
        base_url="https://api.deepinfra.com/v1/openai",
        key_env=("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN"),
        reasoning_outside=True,
    ),
    Provider(
        name="baseten",
        base_url="https://inference.baseten.co/v1",
        key_env=("BASETEN_API_KEY",),
        request_ids=("x-baseten-request-id",),
    ),
    Provider(
        name="novita",
        base_url="https://api.novita.ai/v3/openai",
        key_env=("NOVITA_API_KEY",),
        request_ids=("x-trace-id",),
    ),
    Provider(name="hyperbolic", base_url="https://api.hyperbolic.xyz/v1", key_env=("HYPERBOLIC_API_KEY",)),
    Provider(
        name="nebius",
        base_url="https://api.studio.nebius.com/v1",
        key_env=("NEBIUS_API_KEY",),
        hosts=("api.tokenfactory.nebius.com",),
    ),
    Provider(
        name="ollama",
        base_url="http://localhost:11434/v1",
        key_env=("OLLAMA_API_KEY",),
        hosts=("ollama.com",),
        renames={"max_completion_tokens": "max_tokens"},
    ),
    Provider(
        name="vllm",
        base_url="http://localhost:8000/v1",
        key_env=("VLLM_API_KEY",),
        thinking=_TEMPLATE_THINKING,
    ),
    Provider(
        name="sglang",
        base_url="http://localhost:30000/v1",
        key_env=("SGLANG_API_KEY",),
        thinking=_TEMPLATE_THINKING,
    ),
    # Measured (xllamacpp 2026.10): a stream that is left frees its slot in 3 ms, a whole answer in 1 s at best, and never as
    # long as the server has anything else to do. The FIN comes 40 us after the end of a stream, far later on a busy machine.
    Provider(
        name="llamacpp",
        base_url="http://127.0.0.1:8080/v1",
        key_env=("LLAMA_API_KEY",),
        streams_inside=True,
        closes_after_stream=True,
        thinking=_TEMPLATE_THINKING,
    ),
    Provider(name="lmstudio", base_url="http://localhost:1234/v1", key_env=("LM_STUDIO_API_KEY",)),
    Provider(name="tgi", base_url="http://localhost:8080/v1", key_env=("HF_TOKEN",)),
    Provider(name="xiaomi", base_url="https://api.xiaomimimo.com/v1", key_env=("MIMO_API_KEY",)),
    Provider(name="gmi", base_url="https://api.gmi-serving.com/v1", key_env=("GMI_API_KEY",)),
)

BY_NAME = {row.name: row for row in PROVIDERS}
DEFAULT = BY_NAME["openai"]  # where calls go that name no other place


def provider_of_host(host: str) -> Provider | None:
    """Return the provider that a public host belongs to; a loopback port tells nothing, so local servers have none."""
    host = host.lower()
    known = _hosts()
    if host in known:
        return known[host]
    return next((row for name, row in known.items() if "{" in name and _fits(name, host)), None)


def _fits(template: str, host: str) -> bool:
    """Say whether a host is the template with its one ``{name}`` filled in."""
    before, after = re.split(r"\{\w+\}", template)
    middle = host[len(before) : len(host) - len(after)]
    return host.startswith(before) and host.endswith(after) and bool(middle) and len(host) > len(before + after)


@lru_cache(maxsize=1)
def _hosts() -> dict[str, Provider]:
    return {
        host: row
        for row in PROVIDERS
        for host in (row.base_url.split("/")[2], *row.hosts)
        if not host.startswith(("localhost", "127."))
    }
