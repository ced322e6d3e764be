"""The two texts of client.py and streams.py are one, but for ``async``, ``await``, an ``a`` before a name, and the table below."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import pytest

from jazz_llm import client, streams

TABLE = {
    "AsyncTextStream": "TextStream",
    "AsyncEventStream": "EventStream",
    "_AsyncStream": "_Stream",
    "AsyncIterator": "Iterator",
    "AsyncGenerator": "Generator",
    "AsyncPool": "Pool",
    "AsyncClient": "Client",
    "ask_key_async": "ask_key",
    **{f"__a{name}__": f"__{name}__" for name in ("iter", "next", "enter", "exit")},
    **{f"a{name}": name for name in ["generate", "stream", "stream_events", "close", "primed", "pool", "open", "read", "sleep", "run", "run_tools", "client", "list_models", "embed"]},
    "make_aclient": "make_client",
    "_aeach": "_each",  # these two differ: one after the other, or several at once
}


class ToSync(ast.NodeTransformer):
    """Take the async out of a tree."""

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self.generic_visit(ast.FunctionDef(**{**dict(ast.iter_fields(node)), "name": TABLE.get(node.name, node.name)}))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = TABLE.get(node.name, node.name)
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = TABLE.get(node.name, node.name)
        return self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self.generic_visit(ast.For(**dict(ast.iter_fields(node))))

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        return self.generic_visit(ast.With(**dict(ast.iter_fields(node))))

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = TABLE.get(node.id, node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = TABLE.get(node.attr, node.attr)
        return self.generic_visit(node)


def sync_text(thing: object) -> str:
    tree = ToSync().visit(ast.parse(textwrap.dedent(inspect.getsource(thing))))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(ast.fix_missing_locations(tree))


CLASS = client.OpenAICompatibleLLM
PAIRS = {
    "the streams": (streams._Stream, streams._AsyncStream),
    "TextStream": (streams.TextStream, streams.AsyncTextStream),
    "EventStream": (streams.EventStream, streams.AsyncEventStream),
    "generate": (CLASS.generate, CLASS.agenerate),
    "stream": (CLASS.stream, CLASS.astream),
    "stream_events": (CLASS.stream_events, CLASS.astream_events),
    "run_tools": (CLASS.run_tools, CLASS.arun_tools),
    "list_models": (CLASS.list_models, CLASS.alist_models),
    "embed": (CLASS.embed, CLASS.aembed),
    "client": (CLASS.client.fget, CLASS.aclient.fget),
}


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS.values(), ids=PAIRS)
def test_the_twins_are_one_text(sync: object, asynchronous: object) -> None:
    assert sync_text(asynchronous).replace("_aclient", "_client") == sync_text(sync)


def test_every_async_call_has_its_twin() -> None:
    public = {name for name in vars(CLASS) if not name.startswith("_")}
    for name in public:
        if name.startswith("a") and name[1:] in public:
            assert list(inspect.signature(getattr(CLASS, name)).parameters) == list(inspect.signature(getattr(CLASS, name[1:])).parameters) if callable(getattr(CLASS, name)) else True
    assert {"agenerate", "astream", "astream_events", "arun_tools", "alist_models", "aembed", "aclose", "aclient"} <= public


def test_no_flag_tells_the_colours_apart() -> None:
    package = Path(client.__file__).parent
    assert not [path for path in package.rglob("*.py") if "is_async" in path.read_text()]
