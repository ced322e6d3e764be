"""What is known about each provider, as data: a new provider is a new row.

What is not from the row's ``source`` has its own beside it. A ``{name}`` in a base URL stands for a part of the host or path
that the user has to fill in. ``python -m tests.provider_table`` writes the README's table from this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from .errors import LLMCapabilityError

_NEW_LIMIT = {"max_tokens": "max_completion_tokens"}
_OLD_LIMIT = {"max_completion_tokens": "max_tokens"}
EFFORT = "{effort}"  # in ``thinking``: the word that the user gave
ANY = "*"

_Thinking = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """What one request for embeddings may hold: this many ``texts``, and this many bytes of them.

    ``base64``: whether ``encoding_format: "base64"`` is understood; some refuse the word, so others are not asked. The answer
    then takes 5.3 bytes a number; written out it takes some 20, so that 512 texts of 4,096 numbers are 42 MB of JSON.
    """

    texts: int = 512
    size: int = 2**19  # OpenAI counts 300,000 tokens a request, and a token is two bytes or more of most languages
    base64: bool = False


# 2,048 texts: MicrosoftDocs/azure-docs pull 124129. openai-python asks for base64 wherever nothing else is said; vLLM
# (entrypoints/pooling) and llama.cpp (ggml-org/llama.cpp issue 10887) understand it, and have no limit of texts.
_OPENAI_EMBEDDINGS = Embeddings(texts=2048, base64=True)
_THINKING_OFF: _Thinking = {"none": {"thinking": {"type": "disabled"}}}
_THINKING_TYPE: _Thinking = {**_THINKING_OFF, ANY: {"thinking": {"type": "enabled"}, "reasoning_effort": EFFORT}}
_ENABLE_THINKING: _Thinking = {"none": {"enable_thinking": False}, ANY: {"enable_thinking": True}}
_TEMPLATE_THINKING: _Thinking = {"none": {"chat_template_kwargs": {"enable_thinking": False}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider; every field but the first four is a difference from plain OpenAI, and ``source`` says who tells.

    Where it is: ``hosts`` are more hosts that are this provider; ``key_header`` carries the key (None: ``Authorization:
    Bearer``); ``models_path`` leads from the root to the list of models, None where there is none; ``models_public``: the list
    is there for wrong keys too; ``request_ids`` are the headers that name a request, best first.

    What it is sent: ``renames`` gives an option the name that it takes; ``thinking`` says for a ``reasoning_effort`` what is
    sent in its place (``ANY``: for every other one); ``stream_options``: whether it takes ``stream_options.include_usage``;
    ``developer``: whether it knows that role, else it is sent as ``system``; ``text_only``: content must be text, no parts;
    ``names``: whether a message may say who speaks, as ``name``; ``ignores``: options that it drops without a word, so that
    they are refused here; ``structured`` says how it is told of a ``response_format``: as a JSON schema, as ``json_object``
    with the schema in the prompt, or by the prompt alone; ``strict``: it takes schemas in OpenAI's strict subset;
    ``schema_field`` takes ``{"json": schema}`` besides; ``strict_tools``: strict tools bind it where ``tool_choice`` is "auto"
    too; ``forces_tools``: "required" or a tool's name binds it; ``embeddings``: how it is asked for those, None where it has
    none.

    What it does: ``streams_inside``: it notices only while it streams that nobody listens any more, or answers properly only
    then, so whole answers are asked for as streams too; ``closes_after_stream``: it promises to keep an HTTP/1.1 connection and
    closes it after each stream; ``reasoning_outside``: reasoning tokens are beside ``completion_tokens``; ``echo``: fields of
    the assistant's message that it wants back during a tool loop.
    """

    name: str
    base_url: str
    key_env: tuple[str, ...]
    source: str
    hosts: tuple[str, ...] = ()
    key_header: str | None = None
    models_path: str | None = "/models"
    models_public: bool = False
    request_ids: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    thinking: _Thinking = field(default_factory=dict)
    stream_options: bool = True
    developer: bool = True
    text_only: bool = False
    names: bool = False
    ignores: frozenset[str] = frozenset()
    structured: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    strict: bool = False
    schema_field: str | None = None
    strict_tools: bool = False
    forces_tools: bool = True
    embeddings: Embeddings | None = field(default_factory=Embeddings)
    streams_inside: bool = False
    closes_after_stream: bool = False
    reasoning_outside: bool = False
    echo: tuple[str, ...] = ()


# ``names``: groq ("will result in a 400 error": console.groq.com/docs/openai), mistral (BerriAI/litellm issue 6696), perplexity
# (2373), xai (9720, but of users), fireworks (microsoft/autogen issue 1129) and vLLM 0.9.2 (microsoft/agent-framework issue
# 1807) answer one with 4xx; azure takes it (Azure/azure-rest-api-specs issue 24867), but not for every model behind it
# (microsoft/semantic-kernel issue 12845). So only those are sent one that document it for all: openai-python,
# ChatCompletionAssistantMessageParam; platform.deepseek.com/api-docs/api/create-chat-completion.
PROVIDERS: tuple[Provider, ...] = (
    Provider(
        name="openai",
        source="openai/openai-python",
        base_url="https://api.openai.com/v1",
        key_env=("OPENAI_API_KEY",),
        embeddings=_OPENAI_EMBEDDINGS,
        renames=_NEW_LIMIT,
        strict=True,
        strict_tools=True,
        names=True,
    ),
    # The header is api-key, and Bearer is for Entra tokens: openai-python lib/azure.py.
    Provider(
        name="azure",
        source="openai-python lib/azure.py; learn.microsoft.com",
        base_url="https://{resource}.openai.azure.com/openai/v1",
        key_env=("AZURE_OPENAI_API_KEY",),
        hosts=("{resource}.services.ai.azure.com", "{resource}.cognitiveservices.azure.com"),
        key_header="api-key",
        embeddings=_OPENAI_EMBEDDINGS,
        renames=_NEW_LIMIT,
        strict=True,
        strict_tools=True,
        request_ids=("apim-request-id", "x-ms-client-request-id"),
    ),
    Provider(
        name="groq",
        source="console.groq.com/docs/openai",
        base_url="https://api.groq.com/openai/v1",
        key_env=("GROQ_API_KEY",),
        renames=_NEW_LIMIT,
    ),
    # V3.2 and later want reasoning_content back beside tool calls: api-docs.deepseek.com, "Thinking with tools". It knows
    # json_object alone, and wants the word JSON in the prompt: api-docs.deepseek.com/guides/json_mode.
    Provider(
        name="deepseek",
        source="api-docs.deepseek.com",
        base_url="https://api.deepseek.com",
        key_env=("DEEPSEEK_API_KEY",),
        echo=("reasoning_content",),
        renames=_OLD_LIMIT,
        thinking=_THINKING_TYPE,
        developer=False,
        structured="json_object",
        request_ids=("x-ds-trace-id",),
        names=True,
    ),
    # stream_options was answered 422 extra_forbidden, and usage comes without it: mistralai/client-python. "Too many tokens in
    # batch. Max is 16384": aurelio-labs/semantic-router issue 297; 512 texts: raphaelmansuy/edgequake-llm pull 74.
    Provider(
        name="mistral",
        embeddings=Embeddings(texts=512, size=2**15),
        source="mistralai/client-python",
        base_url="https://api.mistral.ai/v1",
        key_env=("MISTRAL_API_KEY",),
        stream_options=False,
        renames={**_OLD_LIMIT, "seed": "random_seed"},
        request_ids=("mistral-correlation-id", "x-kong-request-id"),
    ),
    Provider(
        name="together",
        source="docs.together.ai",
        base_url="https://api.together.xyz/v1",
        key_env=("TOGETHER_API_KEY",),
        hosts=("api.together.ai",),
    ),
    Provider(
        name="fireworks",
        source="docs.fireworks.ai",
        base_url="https://api.fireworks.ai/inference/v1",
        key_env=("FIREWORKS_API_KEY",),
    ),
    # "Cancellation only works for streaming requests", others are billed for the complete response: openrouter.ai/docs.
    # /models "returns 200 OK regardless of key validity": accomplish-ai/coworker pull 208, charmbracelet/crush pull 997.
    Provider(
        name="openrouter",
        source="openrouter.ai/docs",
        base_url="https://openrouter.ai/api/v1",
        key_env=("OPENROUTER_API_KEY",),
        models_public=True,
        streams_inside=True,
        request_ids=("x-generation-id",),
    ),
    Provider(name="xai", source="docs.x.ai", base_url="https://api.x.ai/v1", key_env=("XAI_API_KEY",)),
    Provider(
        name="cerebras",
        source="inference-docs.cerebras.ai",
        base_url="https://api.cerebras.ai/v1",
        key_env=("CEREBRAS_API_KEY",),
        renames=_NEW_LIMIT,
        developer=False,
        strict=True,
        request_ids=("x-request-id", "inference-id"),
    ),
    # Usage is on every chunk, and sonar-deep-research counts reasoning beside it. Its embeddings are no floats but 8-bit
    # integers or bits in base64: docs.perplexity.ai.
    Provider(
        name="perplexity",
        embeddings=None,
        models_path=None,
        source="docs.perplexity.ai",
        base_url="https://api.perplexity.ai",
        key_env=("PERPLEXITY_API_KEY", "PPLX_API_KEY"),
        stream_options=False,
        reasoning_outside=True,
    ),
    # "At most 100 requests can be in one batch": geldata/gel issue 9032.
    Provider(
        name="gemini",
        embeddings=Embeddings(texts=100),
        source="ai.google.dev/gemini-api/docs/openai",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key_env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    Provider(
        name="vertex",
        source="cloud.google.com/vertex-ai",
        base_url="https://{location}-aiplatform.googleapis.com/v1/projects/{project}/locations/{location}/endpoints/openapi",
        key_env=(),
        hosts=("aiplatform.googleapis.com",),
    ),
    # It has no model for embeddings: nutrient.io and other clients of it. response_format is ignored: its page of what is.
    Provider(
        name="anthropic",
        embeddings=None,
        source="docs.anthropic.com/en/api/openai-sdk",
        base_url="https://api.anthropic.com/v1",
        key_env=("ANTHROPIC_API_KEY",),
        structured="prompt",
        request_ids=("request-id",),
    ),
    # "Supports up to 96 texts": cohere-ai/cohere-python pull 141.
    Provider(
        name="cohere",
        embeddings=Embeddings(texts=96),
        source="docs.cohere.com/docs/compatibility-api",
        base_url="https://api.cohere.ai/compatibility/v1",
        key_env=("CO_API_KEY", "COHERE_API_KEY"),
        hosts=("api.cohere.com",),
    ),
    Provider(
        name="moonshot",
        forces_tools=False,
        source="platform.moonshot.ai/docs",
        base_url="https://api.moonshot.ai/v1",
        key_env=("MOONSHOT_API_KEY",),
        hosts=("api.moonshot.cn",),
        thinking=_THINKING_OFF,
    ),
    Provider(
        name="zhipu",
        source="docs.bigmodel.cn",
        base_url="https://open.bigmodel.cn/api/paas/v4",
        key_env=("ZHIPUAI_API_KEY",),
        renames=_OLD_LIMIT,
        thinking=_THINKING_TYPE,
    ),
    Provider(
        name="zai",
        source="docs.z.ai",
        base_url="https://api.z.ai/api/paas/v4",
        key_env=("ZAI_API_KEY",),
        renames=_OLD_LIMIT,
        thinking=_THINKING_TYPE,
    ),
    # "Batch size is invalid, it should not be larger than 10" (older models: 25): memodb-io/memobase issue 142.
    Provider(
        name="dashscope",
        embeddings=Embeddings(texts=10),
        source="help.aliyun.com/en/model-studio",
        base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
        key_env=("DASHSCOPE_API_KEY",),
        hosts=("dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com"),
        thinking=_ENABLE_THINKING,
        request_ids=("x-request-id",),
    ),
    Provider(
        name="minimax",
        source="platform.minimax.io/docs",
        base_url="https://api.minimax.io/v1",
        key_env=("MINIMAX_API_KEY",),
        hosts=("api.minimaxi.com",),
    ),
    Provider(
        name="sambanova", source="docs.sambanova.ai", base_url="https://api.sambanova.ai/v1", key_env=("SAMBANOVA_API_KEY",)
    ),
    Provider(
        name="nvidia",
        source="docs.api.nvidia.com; langchain-nvidia",
        base_url="https://integrate.api.nvidia.com/v1",
        key_env=("NVIDIA_API_KEY",),
        request_ids=("nvcf-reqid",),
    ),
    Provider(
        name="huggingface",
        source="huggingface.co/docs/inference-providers",
        base_url="https://router.huggingface.co/v1",
        key_env=("HF_TOKEN",),
    ),
    Provider(
        name="novelai",
        models_path=None,
        source="SillyTavern issue 4575; other clients",
        base_url="https://text.novelai.net/oa/v1",
        key_env=("NOVELAI_API_KEY",),
        thinking=_ENABLE_THINKING,
        text_only=True,
        ignores=frozenset({"tools"}),
        structured="prompt",
        streams_inside=True,
    ),
    Provider(
        name="bedrock",
        source="docs.aws.amazon.com/bedrock",
        base_url="https://bedrock-runtime.{region}.amazonaws.com/openai/v1",
        key_env=("AWS_BEARER_TOKEN_BEDROCK",),
        hosts=("bedrock-mantle.{region}.api.aws",),
        request_ids=("x-amzn-requestid",),
    ),
    # A whole answer goes on at the provider when its caller has gone: BerriAI/litellm issue 37140.
    Provider(
        name="litellm",
        source="docs.litellm.ai",
        base_url="http://localhost:4000",
        key_env=("LITELLM_API_KEY",),
        streams_inside=True,
        request_ids=("x-litellm-call-id",),
    ),
    # More than 100 texts were refused: cloudflare/cloudflare-docs issue 11316.
    Provider(
        name="cloudflare",
        embeddings=Embeddings(texts=100),
        source="developers.cloudflare.com/workers-ai",
        base_url="https://api.cloudflare.com/client/v4/accounts/{account_id}/ai/v1",
        key_env=("CLOUDFLARE_API_TOKEN",),
        hosts=("gateway.ai.cloudflare.com",),
        models_path="/../models/search",
    ),
    # Models that run on Bedrock answer stream_options with 400: docs.databricks.com.
    Provider(
        name="databricks",
        source="docs.databricks.com",
        base_url="https://{host}.cloud.databricks.com/serving-endpoints",
        key_env=("DATABRICKS_TOKEN",),
        hosts=("{host}.azuredatabricks.net", "{host}.gcp.databricks.com"),
        stream_options=False,
        models_path="/../api/2.0/serving-endpoints",
        request_ids=("x-request-id", "x-amzn-requestid"),
    ),
    Provider(
        name="github",
        source="docs.github.com/github-models",
        base_url="https://models.github.ai/inference",
        key_env=("GITHUB_TOKEN",),
        hosts=("models.inference.ai.azure.com",),
        models_path="/../catalog/models",
        strict=True,
    ),
    Provider(
        name="snowflake",
        source="docs.snowflake.com (Cortex REST API)",
        base_url="https://{account}.snowflakecomputing.com/api/v2/cortex/v1",
        key_env=("SNOWFLAKE_TOKEN",),
    ),
    Provider(
        name="deepinfra",
        source="deepinfra.com/docs",
        base_url="https://api.deepinfra.com/v1/openai",
        key_env=("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN"),
        reasoning_outside=True,
    ),
    Provider(
        name="baseten",
        source="docs.baseten.co",
        base_url="https://inference.baseten.co/v1",
        key_env=("BASETEN_API_KEY",),
        request_ids=("x-baseten-request-id",),
    ),
    Provider(
        name="novita",
        source="novita.ai/docs",
        base_url="https://api.novita.ai/v3/openai",
        key_env=("NOVITA_API_KEY",),
        request_ids=("x-trace-id",),
    ),
    Provider(
        name="hyperbolic",
        source="docs.hyperbolic.xyz",
        base_url="https://api.hyperbolic.xyz/v1",
        key_env=("HYPERBOLIC_API_KEY",),
    ),
    Provider(
        name="nebius",
        source="docs.nebius.com",
        base_url="https://api.studio.nebius.com/v1",
        key_env=("NEBIUS_API_KEY",),
        hosts=("api.tokenfactory.nebius.com", "api.studio.nebius.ai"),
    ),
    Provider(
        name="ollama",
        forces_tools=False,
        source="ollama/ollama docs/openai.md",
        base_url="http://localhost:11434/v1",
        key_env=("OLLAMA_API_KEY",),
        hosts=("ollama.com",),
        renames=_OLD_LIMIT,
    ),
    Provider(
        name="vllm",
        source="docs.vllm.ai",
        base_url="http://localhost:8000/v1",
        key_env=("VLLM_API_KEY",),
        embeddings=_OPENAI_EMBEDDINGS,
        thinking=_TEMPLATE_THINKING,
        schema_field="structured_outputs",
    ),
    Provider(
        name="sglang",
        source="docs.sglang.ai",
        base_url="http://localhost:30000/v1",
        key_env=("SGLANG_API_KEY",),
        thinking=_TEMPLATE_THINKING,
    ),
    # Measured (xllamacpp 2026.10): a stream that is left frees its slot in 3 ms, a whole answer in 1 s at best, and never as
    # long as the server has anything else to do. The FIN comes 40 us after the end of a stream, far later on a busy machine.
    Provider(
        name="llamacpp",
        source="ggml-org/llama.cpp tools/server",
        base_url="http://127.0.0.1:8080/v1",
        key_env=("LLAMA_API_KEY",),
        embeddings=_OPENAI_EMBEDDINGS,
        streams_inside=True,
        closes_after_stream=True,
        thinking=_TEMPLATE_THINKING,
    ),
    Provider(name="lmstudio", source="lmstudio.ai/docs", base_url="http://localhost:1234/v1", key_env=("LM_STUDIO_API_KEY",)),
    Provider(
        name="tgi", source="huggingface/text-generation-inference", base_url="http://localhost:8080/v1", key_env=("HF_TOKEN",)
    ),
    Provider(
        name="xiaomi",
        source="maruel/genai providers/xiaomi",
        base_url="https://api.xiaomimimo.com/v1",
        key_env=("MIMO_API_KEY",),
    ),
    Provider(name="gmi", source="docs.gmicloud.ai", base_url="https://api.gmi-serving.com/v1", key_env=("GMI_API_KEY",)),
)

BY_NAME = {row.name: row for row in PROVIDERS}
DEFAULT = BY_NAME["openai"]  # where calls go that name no other place


def in_dialect(row: Provider | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return a call's options by the names, and in the form, in which the provider takes them.

    Raises ``LLMCapabilityError`` for what it would drop without a word.
    """
    if row is None:
        return options
    dropped = next((name for name in options if name in row.ignores), None)
    if dropped is not None:
        raise LLMCapabilityError(f"{dropped}: {row.name} ignores it.", provider=row.name)
    if not (row.renames or row.thinking):
        return options
    spoken = options.copy()
    for name in row.renames.keys() & options.keys():
        spoken.setdefault(row.renames[name], spoken.pop(name))
    effort = options.get("reasoning_effort")
    switch = None if effort is None else row.thinking.get(effort, row.thinking.get(ANY))
    if switch is None:
        return spoken
    del spoken["reasoning_effort"]
    for name, value in switch.items():
        given = options.get(name)  # what the user gave under the same name stays beside it, and wins
        spoken[name] = effort if value == EFFORT else {**value, **given} if isinstance(given, Mapping) else value
    return spoken


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
