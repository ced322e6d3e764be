"""A language model for the tests, written in a moment: llama architecture, random weights, a real llama.cpp to serve it.

What it says is nonsense, but it is text: words with accents, Chinese, Japanese, Korean and emoji, each token a whole piece,
so that a stream never ends within a character. How often it stops is set by ``stop_bias``.

How a random model is kept in order: the first of the 64 numbers of the residual stream is a constant. The token embedding
sets it, no layer reads or writes it, and it is large beside the others, so after the last norm it is about 1 whatever the
text. The first column of the output matrix is therefore a bias per token. The second number is another such constant, but
only where the last token is one that the model never says, as at the end of a prompt: there it keeps the model from
stopping, so no answer is empty.

With ``tools`` it can also do what a grammar says, and call tools: it is Qwen 2.5's way, a JSON object after ``<tool_call>``.
Two things differ then. What llama.cpp puts before an answer it reads back token by token through the grammar, so the
vocabulary must not add a space of its own in front of it. And the marker, its line end and the first brace are one token:
with the bare marker no call ever comes whole, with the marker and its line end "auto" is answered by status 500.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from jazz_llm.local import LocalServer

Weights = NDArray[np.float32]

DIM, HEADS, KV_HEADS, LAYERS, FEED_FORWARD, CONTEXT = 64, 4, 2, 2, 128, 4096
SEED = 135
BIAS, PROMPT = 0, 1  # the two constant numbers of the residual stream
CONSTANT = 32.0  # their size; the others are about 1 each
FORBIDDEN = -1000.0  # a logit

# Stop bias: the logit of <|im_end|>, where that of a piece is 0, give or take 2.
NEVER_STOPS = FORBIDDEN  # always runs until max_tokens: finish_reason "length"
STOPS_SOMETIME = 2.5  # after some dozens of tokens
STOPS_SOON = 6.0  # after two or three

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
IM_END = SPECIAL.index("<|im_end|>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
CHARACTERS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()[]{}<>/\\&%$#@*+-=_"
    "àâäæçéèêëîïñôöœßùûüÿåøšžłőğıαβγδλπσωбгдёжийшщыэюя"
    "的一是不了人我在有他这中大来上国日本語東京水火山あいうえおカタナ한국어안녕하세요"
    "😀😂🥳🤖🚀🌍🔥🎉🐍🍕🎷💡✅❌⭐"
)
WORDS = (
    "the of and to in is it for on with as was at by an be this from or have not are but all can had one we there when out "
    "up so said what its about than into them time only some could these two may first then do any like my now over such "
    "our man even most made after also did many before must through years where much your way well down should because each "
    "just those people how too little state good very make world still own see men work long get here between both life "
    "jazz piano trumpet saxophone drum bass swing blues melody rhythm chord tempo solo tune note band song "
    "été déjà où garçon naïve cœur über Straße größer señor niño coração mañana smörgåsbord żółć čeština İstanbul Ελλάδα "
    "привет мир 世界 日本 東京 音楽 你好 한국 안녕 👍🏽 🇳🇱 🎺 🎷"
)
NEVER_SAID = (*SPECIAL, *BYTES)
PIECES = ("▁", *CHARACTERS, *(f"▁{word}" for word in WORDS.split()))  # "▁" is SentencePiece's space
TOKENS = list(dict.fromkeys(NEVER_SAID + PIECES))

# What the model with ``tools`` can say besides, each with its logit: calls now and then, and strings of some ten characters.
CALL = "<tool_call>\n{"
TOOL_BIASES = {CALL: 2.5, '"': 4.0}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOOLS = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- '# Tools\n\nYou may call one or more functions.\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>\n\nFor each call return a JSON object with name and arguments within <tool_call></tool_call>:\n' }}
    {{- '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first)
            or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


@contextmanager
def serve_tiny(
    tmp_dir: Path,
    *,
    stop_bias: float = STOPS_SOMETIME,
    tools: bool = False,
    embeddings: bool = False,
    n_ctx: int | None = None,
    n_parallel: int | None = None,
) -> Iterator[str]:
    """Serve the tiny model from a file in ``tmp_dir`` while the block runs; yield the base URL, without ``/v1``."""
    model = tiny_model(tmp_dir, stop_bias=stop_bias, tools=tools)
    # One thread: several wait for each other after every layer, here some 10 us of work, and stall on a busy machine.
    server = LocalServer(model, n_ctx=n_ctx, n_parallel=n_parallel, n_threads=1)
    if embeddings:  # llama-server's --embeddings, which LocalServer has no argument for
        server._settings["embedding"] = True
    with server as base_url:
        yield base_url


def tiny_model(folder: Path, *, stop_bias: float = STOPS_SOMETIME, tools: bool = False) -> Path:
    """Return a tiny GGUF in ``folder``, written only where this version of it is not there yet."""
    version = hashlib.sha256(Path(__file__).read_bytes() + f"{gguf.GGUF_VERSION} {stop_bias} {tools}".encode()).hexdigest()[:12]
    path = folder / f"tiny-{version}.gguf"
    return path if path.exists() else write_tiny_gguf(path, stop_bias=stop_bias, tools=tools)


def write_tiny_gguf(path: Path, *, stop_bias: float = STOPS_SOMETIME, tools: bool = False) -> Path:
    """Write a tiny model to ``path`` and return it; a file that a server has mapped is replaced, never rewritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / "part.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        _add_architecture(writer)
        _add_vocabulary(writer, tools)
        for name, tensor in _tensors(stop_bias, tools).items():
            writer.add_tensor(f"{name}.weight", tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, path)
    return path


def _add_architecture(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(DIM)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(DIM // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _vocabulary(tools: bool) -> list[str]:
    return [*TOKENS, CALL] if tools else TOKENS


def _add_vocabulary(writer: gguf.GGUFWriter, tools: bool) -> None:
    tokens = _vocabulary(tools)
    types = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.BYTE] * len(BYTES)
    types += [gguf.TokenType.NORMAL] * (len(TOKENS) - len(types))
    types += [gguf.TokenType.USER_DEFINED] * (len(tokens) - len(types))
    types[0] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")  # SentencePiece: what is no piece becomes bytes, so every prompt has tokens
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(SPECIAL.index("<s>"))
    writer.add_eos_token_id(IM_END)
    writer.add_unk_token_id(0)
    writer.add_pooling_type(gguf.PoolingType.MEAN)  # of the embeddings; answers have none to do with it
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(not tools)  # True is what llama.cpp does where nothing is said
    writer.add_chat_template(CHATML_TOOLS if tools else CHATML)


def _tensors(stop_bias: float, tools: bool) -> dict[str, Weights]:
    """Return every weight by its name in llama.cpp, matrices of shape (outputs, inputs)."""
    random, tokens = np.random.default_rng(SEED), _vocabulary(tools)
    tensors = {
        "token_embd": _embedding(random, len(tokens)),
        "output_norm": _norm(constants=DIM**-0.5),
        "output": _output(random, tokens, {"<|im_end|>": stop_bias} | (TOOL_BIASES if tools else {})),
    }
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.{name}": tensor for name, tensor in _layer(random).items()}
    return tensors


def _embedding(random: np.random.Generator, tokens: int) -> Weights:
    embedding = _noise(random, tokens, DIM) * np.float32(DIM**0.5)
    embedding[:, BIAS] = CONSTANT
    embedding[:, PROMPT] = 0.0
    embedding[: len(NEVER_SAID), PROMPT] = CONSTANT
    return embedding


def _output(random: np.random.Generator, tokens: list[str], biases: dict[str, float]) -> Weights:
    """Return the output matrix: noise for the pieces, a bias alone for the tokens never said and for the stop."""
    output = _noise(random, len(tokens), DIM)
    output[:, [BIAS, PROMPT]] = 0.0
    output[: len(NEVER_SAID)] = 0.0
    output[: len(NEVER_SAID), BIAS] = FORBIDDEN
    for token, bias in biases.items():
        output[tokens.index(token), BIAS] = bias
    output[IM_END, PROMPT] = FORBIDDEN
    return output


def _layer(random: np.random.Generator) -> dict[str, Weights]:
    key_value = DIM // HEADS * KV_HEADS
    tensors = {
        "attn_norm": _norm(constants=0.0),
        "attn_q": _noise(random, DIM, DIM),
        "attn_k": _noise(random, key_value, DIM),
        "attn_v": _noise(random, key_value, DIM),
        "attn_output": _noise(random, DIM, DIM),
        "ffn_norm": _norm(constants=0.0),
        "ffn_gate": _noise(random, FEED_FORWARD, DIM),
        "ffn_up": _noise(random, FEED_FORWARD, DIM),
        "ffn_down": _noise(random, DIM, FEED_FORWARD),
    }
    for name in ("attn_output", "ffn_down"):
        tensors[name][[BIAS, PROMPT]] = 0.0
    return tensors


def _norm(*, constants: float) -> Weights:
    """Return the weights of an RMS norm that gives the constants this size (times 8) and the other numbers about 1."""
    weights = np.full(DIM, CONSTANT / DIM**0.5, np.float32)
    weights[[BIAS, PROMPT]] = constants
    return weights


def _noise(random: np.random.Generator, outputs: int, inputs: int) -> Weights:
    """Return a matrix that keeps the size of what it is applied to."""
    noise: Weights = random.standard_normal((outputs, inputs), np.float32) * np.float32(inputs**-0.5)
    return noise
