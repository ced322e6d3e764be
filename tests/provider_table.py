"""The README's table of providers, from the registry: ``python -m tests.provider_table`` writes it anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from jazz_llm.providers import ANY, EFFORT, PROVIDERS, Embeddings, Provider

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- providers: python -m tests.provider_table -->\n", "<!-- end of providers -->\n"


def table() -> str:
    """Return the table, a row for each provider."""
    lines = ["| `provider=` | base URL | key | what differs | source |", "|---|---|---|---|---|"]
    for row in PROVIDERS:
        keys = ", ".join(f"`{name}`" for name in row.key_env) or "pass `api_key=`"
        lines.append(f"| `{row.name}` | `{row.base_url}` | {keys} | {'; '.join(differences(row))} | {row.source} |")
    return "\n".join(lines) + "\n"


def differences(row: Provider) -> Iterator[str]:
    """Say in words what a row's data say."""
    if row.hosts:
        yield f"also {', '.join(row.hosts)}"
    if row.key_header:
        yield f"key in `{row.key_header}`"
    for name, sent in row.renames.items():
        yield f"`{name}` is sent as `{sent}`"
    if not row.stream_options:
        yield "no `stream_options`"
    for effort, switch in row.thinking.items():
        if EFFORT not in switch.values():
            yield f"`reasoning_effort={'...' if effort == ANY else effort}` is sent as {_fields(switch)}"
    if not row.developer:
        yield "`developer` is sent as `system`"
    if row.text_only:
        yield "text only"
    if row.ignores:
        yield f"no {' or '.join(f'`{name}`' for name in sorted(row.ignores))}"
    if row.structured == "json_object":
        yield "`response_format` is sent as `json_object`, its schema in the prompt"
    if row.structured == "prompt":
        yield "`response_format` goes into the prompt alone"
    if row.strict:
        yield "`response_format` in OpenAI's strict subset"
    if row.schema_field:
        yield f"the schema of `response_format` in `{row.schema_field}` too"
    if row.strict_tools:
        yield "strict tools bind it whatever `tool_choice` is"
    if not row.forces_tools:
        yield "cannot be made to call a tool"
    if row.embeddings is None:
        yield "no embeddings"
    elif row.embeddings != Embeddings():
        yield f"embeddings of up to {row.embeddings.texts} texts a request"
    if row.streams_inside:
        yield "whole answers are asked for as streams"
    if row.closes_after_stream:
        yield "closes its connection after a stream"
    if row.models_path != "/models":
        yield f"models at `{row.models_path}`" if row.models_path else "no list of models"
    if row.reasoning_outside:
        yield "counts reasoning beside `completion_tokens`"
    if row.echo:
        yield f"wants {', '.join(f'`{name}`' for name in row.echo)} back beside tool calls"


def _fields(switch: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in switch.items())


def written(readme: str) -> str:
    """Return the README with the table as the registry has it now."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
