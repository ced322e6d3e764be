"""Real model servers beside llama.cpp: LiteLLM's proxy before it, and vLLM on the CPU. CONTRIBUTING.md says how to get them.

A :class:`Server` is what a client sees of one of them, and what is known about the model behind it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from jazz_llm import OpenAICompatibleLLM
from jazz_llm.testing import Authority, FakeServer, Reply, Request

from .proxies import HERE, ROOT, Model, Process, certificate, free_port

CONTEXT = 16_384  # tokens, of llama.cpp
START = 240.0  # seconds for these servers to start, on a busy machine (alone: 7 and 30)


@dataclass(frozen=True, slots=True)
class Server:
    """What clients see: a URL and a model's name, and the model that does the work behind it."""

    url: str
    model: Model
    name: str = "tiny"
    context: int = CONTEXT
    key: str | None = None
    provider: str | None = None
    verify: str | bool = True
    process: Process | None = None
    lasting: str = "tiny"  # the model's name for answers that last

    @property
    def long(self) -> dict[str, Any]:
        """Return the options of a call that keeps the model busy for seconds."""
        return {"model": self.lasting, "max_tokens": self.context * 3 // 4}

    def client(self, **arguments: Any) -> OpenAICompatibleLLM:
        """Make a client that does not try again, and whose answers last until ``max_tokens``."""
        usual = {
            "model": self.name,
            "api_key": self.key,
            "base_url": self.url,
            "provider": self.provider,
            "verify": self.verify,
        }
        body = {"extra_body": {"ignore_eos": True}} if self.provider != "litellm" else {}  # which does not know it
        return OpenAICompatibleLLM(**{**usual, **body, "max_retries": 0, **arguments})


# --- LiteLLM

SAYS = "Hello from the mock"

#: Errors that LiteLLM raises where ``mock_response`` names them, as models of that name: ``mock_completion`` in its main.py.
RAISES = ("RateLimitError", "InternalServerError", "ContextWindowExceededError")

#: Nothing that it would ask the internet for.
OFFLINE = {
    f"LITELLM_LOCAL_{name}": "True"
    for name in ("MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS", "AUTOROUTER_PRESETS", "BLOG_POSTS", "POLICY_TEMPLATES")
}

#: Since a key could otherwise have answers made up on another's account, LiteLLM drops ``mock_response`` from requests
#: unless the key's metadata allow it, and without a database only code of one's own can give a key metadata.
ALLOWING = """
import os

from litellm.proxy._types import UserAPIKeyAuth


async def check(request, api_key):
    if api_key != os.environ["LITELLM_MASTER_KEY"]:
        raise ValueError("that is not the key")
    return UserAPIKeyAuth(api_key=api_key, metadata={"allow_client_mock_response": True})
"""

#: What :func:`serve_paced` says: so many words at most, so many seconds apart.
LASTS, PACE = 500, 0.02


@contextmanager
def serve_paced() -> Iterator[Model]:
    """Serve words at the pace of a large model, and as llama.cpp does how many answers it is busy with.

    LiteLLM 1.106 passes on some 400 tokens a second. A model behind it that is faster, as our llama.cpp is, was measured to
    go on for up to 17 s after its client had gone (57 s on a busy machine), one of this pace for some 20 ms.
    """

    async def answer(request: Request, reply: Reply) -> None:
        if request.path == "/slots":
            await reply.json([{"is_processing": True}] * (server.live - 1))  # but for this one
        elif request.path == "/v1/models":  # asked by LiteLLM as it starts
            await reply.json({"object": "list", "data": []})
        else:
            count = min(request.json()["max_tokens"], LASTS)
            await reply.sse([f"{i} " for i in range(count)], delay=PACE)  # LiteLLM ends a stream of 100 equal pieces

    with FakeServer(answer) as server:
        yield Model(int(server.url.rpartition(":")[2]), None)


@contextmanager
def serve_litellm(folder: Path, behind: Server, paced: Model, authority: Authority | None = None) -> Iterator[Server]:
    """Serve LiteLLM's proxy before a server; given an authority, over TLS, and letting requests say ``mock_response``."""
    program, port, key = litellm(), free_port(), f"sk-{secrets.token_hex(24)}"  # weak keys are refused
    configuration, options = litellm_configuration(behind, paced), []
    if authority is not None:
        certificate(authority, folder / "key.pem")
        options = ["--ssl_certfile_path", str(folder / "key.pem"), "--ssl_keyfile_path", str(folder / "key.pem")]
        (folder / "allowing.py").write_text(ALLOWING)
        configuration["general_settings"] = {"custom_auth": "allowing.check"}  # beside the configuration
    path = folder / "configuration.yaml"
    path.write_text(json.dumps(configuration))  # JSON is YAML
    command = [program, "--config", str(path), "--host", HERE, "--port", str(port), "--telemetry", "False", *options]
    process = Process(command, folder, port, patience=START, LITELLM_MASTER_KEY=key, **OFFLINE)
    url = f"{'https' if authority else 'http'}://{HERE}:{port}"
    verify = authority.path if authority else True
    try:
        yield Server(url, paced, key=key, provider="litellm", verify=verify, process=process, lasting="paced")
    finally:
        process.stop()


def litellm() -> str:
    """Return the path of LiteLLM's proxy, or skip the test."""
    found = os.environ.get("JAZZ_LLM_LITELLM") or shutil.which("litellm")
    found = found or shutil.which("litellm", path=ROOT / "build" / "litellm" / "bin")
    return found or pytest.skip("LiteLLM's proxy is not installed: CONTRIBUTING.md, Real servers")


def litellm_configuration(behind: Server, paced: Model) -> dict[str, Any]:
    """Write down the models: the real one, the paced one, one that says ``SAYS``, and those that raise."""
    # Connections to llama.cpp are not kept, as in proxies.py: now and then one of 50 streams at once would end in a 500.
    usual = {"model": "openai/tiny", "api_key": "none", "extra_headers": {"Connection": "close"}}
    real = {"api_base": f"{behind.url}/v1"}
    mocks = {"mock": SAYS, **{name: f"litellm.{name}" for name in RAISES}}
    models = {"tiny": real, "paced": {"api_base": f"http://{HERE}:{paced.port}/v1"}}
    models |= {name: {**real, "mock_response": text} for name, text in mocks.items()}
    return {
        "model_list": [{"model_name": name, "litellm_params": {**usual, **more}} for name, more in models.items()],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    }


# --- vLLM

VLLM_CONTEXT = 8192

CHARACTERS = ("\n", *map(chr, range(ord(" "), ord("~") + 1)))
SPECIAL = ("<unk>", "<s>", "<|im_start|>", "<|im_end|>")
#: ChatML, and Qwen3's way not to think, by which a test sees that ``chat_template_kwargs`` arrive.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
#: Attention on the CPU has kernels for heads of 32, 64 and more numbers.
ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "head_dim": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 128,
    "max_position_embeddings": VLLM_CONTEXT,
    "vocab_size": len(SPECIAL + CHARACTERS),
    "bos_token_id": SPECIAL.index("<s>"),
    "eos_token_id": SPECIAL.index("<|im_end|>"),
}


@contextmanager
def serve_vllm(folder: Path) -> Iterator[Server]:
    """Serve what ``JAZZ_LLM_VLLM`` says: the URL of a vLLM that runs already, or a Python to run one of the test's own with."""
    where = os.environ.get("JAZZ_LLM_VLLM") or pytest.skip("JAZZ_LLM_VLLM is not set: CONTRIBUTING.md, Real servers")
    if where.startswith("http"):
        yield running_vllm(where)
        return
    port = free_port()
    options = ["--host", HERE, "--port", str(port), "--served-model-name", "tiny", "--max-model-len", str(VLLM_CONTEXT)]
    options += ["--load-format", "dummy", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    command = [str(Path(where).with_name("vllm")), "serve", str(write_vllm_model(folder / "model")), *options]
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}  # the last: GiB
    process = Process(command, folder, port, patience=START, **offline)
    try:
        yield replace(running_vllm(f"http://{HERE}:{port}"), process=process)
    finally:
        process.stop()


def running_vllm(url: str) -> Server:
    """Ask a vLLM which model it has."""
    parts = urllib.parse.urlsplit(url)
    with urllib.request.urlopen(f"{parts.scheme}://{parts.netloc}/v1/models") as answer:
        [model] = json.load(answer)["data"]
    engine = Model(parts.port or 80, "vllm", parts.hostname or HERE, "/metrics", busy_requests)
    name, context = model["id"], model["max_model_len"]
    return Server(url, engine, name=name, context=context, provider="vllm", lasting=name)


def busy_requests(metrics: bytes) -> int:
    """Count what vLLM's engine has running and waiting."""
    found = re.findall(rb"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.]+)$", metrics, re.MULTILINE)
    return int(sum(map(float, found)))


def write_vllm_model(folder: Path) -> Path:
    """Write a model in the form of Hugging Face, whose tokens are characters and whose weights vLLM makes up."""
    folder.mkdir()
    vocabulary = {token: number for number, token in enumerate(SPECIAL + CHARACTERS)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": vocabulary[token], "content": token, **special} for token in SPECIAL],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"},
    }
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **tokens}
    files = {"config": ARCHITECTURE, "tokenizer": tokenizer, "tokenizer_config": settings}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
