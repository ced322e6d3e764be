"""Functions -> the schema of their arguments: what a model is told of them, and its words as the values they take.

The hints say what fits, and pydantic reads them; the words for people come from ``Annotated``, else from the docstring's
section on arguments (Google's style, NumPy's or reST's). pydantic and docstring-parser belong to the extra ``schema``.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Optional
from weakref import WeakKeyDictionary

from .errors import LLMConfigurationError, LLMInvalidRequestError
from .schema import Schema, _rebuilt, _Type, library, said

_KINDS = inspect.Parameter
_REFUSED = {_KINDS.VAR_POSITIONAL: "*args", _KINDS.VAR_KEYWORD: "**kwargs", _KINDS.POSITIONAL_ONLY: "positional-only"}


@dataclass(frozen=True, slots=True)
class Described:
    """What a function says of itself; ``schema.parse`` returns what ``arguments_in`` takes."""

    name: str
    description: str
    schema: Schema


# By function, and by the function of a bound method, whose ``self`` is no argument.
_FUNCTIONS: WeakKeyDictionary[Any, Described] = WeakKeyDictionary()
_METHODS: WeakKeyDictionary[Any, Described] = WeakKeyDictionary()


def described(function: Callable[..., Any]) -> Described:
    """Return what a function says of itself; it may be a method, async, a ``functools.partial`` or an object with ``__call__``.

    Raises:
        LLMInvalidRequestError: No schema can be made: ``*args``, a hint that JSON has no form for, a default that is not JSON.
        LLMConfigurationError: The extra ``schema`` is not installed.
    """
    if isinstance(function, type) or not callable(function):
        raise LLMInvalidRequestError(f"A tool must be a function, a Tool or a dict, not {function!r:.80}.", param="tools")
    known, key = (_METHODS, function.__func__) if inspect.ismethod(function) else (_FUNCTIONS, function)
    try:
        if key not in known:
            known[key] = _described(function)
        return known[key]
    except TypeError:  # an object that has no hash, or takes no weak reference
        return _described(function)


def arguments_in(parsed: Any) -> dict[str, Any]:
    """Return what to call the function with."""
    return {field.alias: getattr(parsed, name) for name, field in type(parsed).model_fields.items()}


def inner(function: Callable[..., Any]) -> Any:
    """Return the function that is run in the end: below partials, and for an object its ``__call__``."""
    below: Any = function
    while isinstance(below, functools.partial):
        below = below.func
    return below if inspect.isroutine(below) else below.__call__


def _described(function: Callable[..., Any]) -> Described:
    written = inner(function)
    owner = type(written.__self__) if written.__name__ == "__call__" else None
    name = owner.__name__ if owner else written.__name__
    description, words = _documented(written.__doc__ or (owner and owner.__doc__) or "")
    try:
        fields = _fields(function, typing.get_type_hints(written, include_extras=True), words)
        return Described(name, description, _schema(name, fields))
    except LLMConfigurationError:
        raise
    except LLMInvalidRequestError as error:
        reason = error.message
    except Exception as error:  # a hint that leads nowhere, a type that pydantic or JSON has no form for
        reason = said(error).partition("\n")[0]
    raise LLMInvalidRequestError(f"tools: no schema can be made of {name}(): {reason[:300]}", param="tools")


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """Return a docstring's description, and what it says of each argument."""
    parser = library("docstring_parser")
    try:
        found = parser.parse(text)
    except parser.ParseError:
        return inspect.cleandoc(text), {}
    return (found.description or "").strip(), {one.arg_name: (one.description or "").strip() for one in found.params}


def _fields(function: Callable[..., Any], hints: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """Return pydantic's field for each argument; what a partial holds already is not the model's to give."""
    bound = function.keywords if isinstance(function, functools.partial) else {}
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in _REFUSED:
            raise LLMInvalidRequestError(f"{_REFUSED[parameter.kind]}: a model gives arguments by name ({name!r})")
        if name not in bound:
            # By a name of ours: pydantic keeps "json", "model_config" and "_x" for itself.
            fields[f"p{len(fields)}"] = _field(name, hints.get(name, Any), parameter.default, words.get(name))
    return fields


def _field(name: str, hint: Any, default: Any, words: str | None) -> Any:
    pydantic = library("pydantic")
    hint, *notes = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if default is None:
        hint = Optional[hint]  # noqa: UP045  # hint may be text or a special form, which have no "|"
    told = next(filter(None, map(_told, notes)), words)
    field = pydantic.Field(alias=name, **({"description": told} if told else {}))
    annotated: Any = Annotated[(_rebuilt(hint, {}), *notes, field)]
    return annotated if default is _KINDS.empty else (annotated, default)


def _told(note: Any) -> str | None:
    """Return the words of a note in ``Annotated``: text, pydantic's ``Field`` or ``Doc``."""
    words = note if isinstance(note, str) else getattr(note, "description", None) or getattr(note, "documentation", None)
    return words if isinstance(words, str) else None


def _schema(name: str, fields: dict[str, Any]) -> Schema:
    pydantic = library("pydantic")
    model = pydantic.create_model(name, __config__=pydantic.ConfigDict(extra="forbid"), **fields)
    made = model.model_json_schema(schema_generator=_generator())
    del made["title"]
    return Schema(name, made, _Type(pydantic.TypeAdapter(model)))


@functools.cache
def _generator() -> Any:
    """Return pydantic's maker of JSON schemas, without titles and with an error for a default that it would leave out."""
    base = library("pydantic.json_schema").GenerateJsonSchema

    class Generator(base):  # type: ignore[misc, valid-type]  # known at run time alone
        def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  # pydantic's signature
            return False

        def emit_warning(self, kind: str, detail: str) -> None:
            if kind == "non-serializable-default":
                raise LLMInvalidRequestError(detail.partition(";")[0])

    return Generator
