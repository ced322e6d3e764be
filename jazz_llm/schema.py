"""Types and JSON schemas -> one ``Schema``: what a provider is told, and the check of what it answers.

A type (pydantic model, dataclass, TypedDict) is read by pydantic straight from the text, a JSON schema dict by jsonschema.
Both belong to the extra ``schema`` and are imported on first need. A schema comes from the user and a text from a stranger:
whatever they hold, nothing is fetched, nothing runs for long, and what does not fit is a ``SchemaError``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from itertools import islice
from types import UnionType
from typing import Any

import typing_extensions

from .errors import LLMConfigurationError, LLMInvalidRequestError
from .strict import strict

MAX_DEPTH = 100  # of a schema, as JSON
_MAX_NODES = 20_000  # values of a schema: some 5 s to check; lists and dicts that hold each other double with every level
_MAX_ERRORS, _MAX_ERROR = 10, 300
_MANY_ERRORS = 10_000  # pydantic lists all or none: beyond this, none
_PATTERN_S, _PATTERNS_S, _CHECK_S = 0.25, 1.0, 5.0  # seconds for a value's pattern, an answer's patterns, its references
_NAME = re.compile(r"[^a-zA-Z0-9_-]")  # OpenAI's rule for the name of a schema, 1 to 64 characters

# Where a schema holds schemas: one or a list of them, or some by name. Those "in place" look at the same value again.
_ALTERNATIVES = ("allOf", "anyOf", "else", "if", "not", "oneOf", "then")
_HOLDS = frozenset(
    (
        *("additionalItems", "additionalProperties", "contains", "contentSchema", "items", "prefixItems", "propertyNames"),
        *("unevaluatedItems", "unevaluatedProperties", *_ALTERNATIVES),
    )
)
_HOLDS_NAMED = frozenset(["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"])
_IN_PLACE = frozenset((*_ALTERNATIVES, "dependentSchemas"))
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class SchemaError(ValueError):
    """Tell that a value does not fit; ``errors`` are at most 10 texts of at most 300 characters, each with its place."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = [error if len(error) <= _MAX_ERROR else error[: _MAX_ERROR - 3] + "..." for error in errors[:_MAX_ERRORS]]
        super().__init__("; ".join(self.errors))


class Schema:
    """A type or a JSON schema, ready to be told to a provider and to check its answers.

    ``name`` fits OpenAI's rule for names, ``json`` is the JSON schema, ``wire`` the ``response_format`` that the user wrote in
    OpenAI's own form, else None.
    """

    __slots__ = ("_rules", "_strict", "json", "name", "wire")

    def __init__(self, name: str, schema: dict[str, Any], rules: _Type | _Rules, wire: Mapping[str, Any] | None = None) -> None:
        self.name = _NAME.sub("_", name)[:64] or "answer"
        self.json = schema
        self.wire = wire
        self._rules = rules
        self._strict: dict[str, Any] | None = None

    def parse(self, text: str) -> Any:
        """Return the value that a text holds: an instance of the type, or what the JSON says.

        White space may stand around the JSON, and one Markdown fence.

        Raises:
            SchemaError: It is not JSON, or does not fit.
        """
        return _bounded(self._rules.parse, _unfenced(text))

    def check(self, value: Any) -> list[str]:
        """Return what does not fit in a value that JSON was parsed to; an empty list where all does."""
        try:
            _bounded(self._rules.check, value)
        except SchemaError as error:
            return error.errors
        return []

    def strict(self, provider: str | None = None, what: str = "response_format") -> dict[str, Any]:
        """Return the schema in OpenAI's strict subset; see ``strict``."""
        if self._strict is None:
            self._strict = strict(self.json, what, provider)
        return self._strict


def schema_of(given: Any, what: str = "response_format") -> Schema:
    """Return the schema that a type or a dict stands for; what was made once is used again.

    Args:
        given: A pydantic model's class, a dataclass, a TypedDict, a JSON schema as a dict, or OpenAI's own form of one
            (``{"type": "json_schema", "json_schema": {...}}``, ``{"type": "json_object"}``).
        what: What errors call it.

    Raises:
        LLMInvalidRequestError: It is none of these, or a schema that cannot be checked; the message names the place.
        LLMConfigurationError: The extra ``schema`` is not installed.
    """
    if isinstance(given, Schema):
        return given
    if not isinstance(given, Mapping):
        return _of_type(given, what)
    plain = _plain(given, what)
    if plain == {"type": "json_object"}:
        return Schema("answer", {}, _Rules(None), plain)
    if plain.get("type") == "json_schema" and isinstance(inner := plain.get("json_schema"), dict):
        schema = _of_dict(_dumped(inner.get("schema", {}), what), f"{what}.json_schema.schema")
        return Schema(str(inner.get("name") or schema.name), schema.json, schema._rules, plain)
    return _of_dict(_dumped(plain, what), what)


def _dumped(plain: Any, what: str) -> str:
    text = json.dumps(plain, ensure_ascii=False)
    if any("\ud800" <= character <= "\udfff" for character in ("" if text.isascii() else text)):
        raise _refused(what, "$", "it is not JSON: a lone surrogate")
    return text


def library(name: str) -> Any:
    """Return a module of the extra ``schema``, imported now."""
    try:
        return import_module(name)
    except ImportError as error:
        missing = error.name or name
    raise LLMConfigurationError(f'Schemas and tools need {missing}: pip install "jazz_llm[schema]"')


def _refused(what: str, place: str, reason: str) -> LLMInvalidRequestError:
    return LLMInvalidRequestError(f"{what}: {reason} (at {place[:200]}).", param=what)


# --- Reading texts ----------------------------------------------------------------------------------------------------


def _unfenced(text: str) -> str:
    text = text.strip()
    if len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        inner = text[3:-3]
        return (inner[4:] if inner[:4].lower() == "json" else inner).strip()
    return text


def _bounded(step: Callable[[Any], Any], value: Any) -> Any:
    """Take a step of a library's; whatever it raises, a user's validator included, is a ``SchemaError``."""
    try:
        return step(value)
    except SchemaError:
        raise
    except RecursionError:
        errors = ["it is nested too deeply"]
    except Exception as error:
        errors = [said(error)]
    raise SchemaError(errors)


def said(error: Exception) -> str:
    """Return what an exception says; that of a user's class may fail to."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def load(text: str) -> Any:
    """Return the value of a JSON text, read as RFC 8259 has it: no NaN, and no name twice in an object.

    Raises:
        SchemaError: It is not that, is nested too deeply, or holds an integer of more than 4300 digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except SchemaError:
        raise
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise SchemaError([f"not JSON: {reason}"])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise SchemaError([f"not JSON: the name {twice[:100]!r} stands twice in an object"])


def _no_constant(word: str) -> Any:
    raise SchemaError([f"not JSON: {word}"])


# --- Types, by pydantic -----------------------------------------------------------------------------------------------


class _Type:
    """What pydantic makes of a type."""

    __slots__ = ("_adapter",)

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def parse(self, text: str) -> Any:
        load(text)  # pydantic takes NaN for a number, and of a name that stands twice the last; 10 KB: 130 us beside its 80
        return self._told(self._adapter.validate_json, text)

    def check(self, value: Any) -> None:
        self._told(self._adapter.validate_python, value)

    def _told(self, step: Callable[[Any], Any], value: Any) -> Any:
        try:
            return step(value)
        except ValueError as error:
            if not hasattr(error, "error_count"):
                raise
            errors = _errors_of(error)
        raise SchemaError(errors)


def _errors_of(error: Any) -> list[str]:
    if (count := error.error_count()) > _MANY_ERRORS:
        return [f"{count} values do not fit"]
    listed = error.errors(include_url=False, include_context=False, include_input=False)
    return [f"{'.'.join(map(str, one['loc'])) or '$'}: {one['msg']}" for one in islice(listed, _MAX_ERRORS)]


def _of_type(given: Any, what: str) -> Schema:
    try:
        return _made(given, what)
    except TypeError:
        pass  # what cannot be hashed is no type
    raise LLMInvalidRequestError(_NOT_A_TYPE.format(what=what, given=type(given).__name__), param=what)


_NOT_A_TYPE = (
    "{what} must be a pydantic model, a dataclass, a TypedDict or a JSON schema as a dict, not {given}; a list, say, can be a "
    "field of a model."
)


@lru_cache(256)
def _made(given: Any, what: str) -> Schema:
    pydantic = library("pydantic")
    kind = typing.get_origin(given) or given  # of a generic one with its arguments
    known = isinstance(kind, type) and (issubclass(kind, pydantic.BaseModel) or dataclasses.is_dataclass(kind))
    if not known and not typing_extensions.is_typeddict(kind):
        shown = given.__name__ if isinstance(given, type) else f"{given!r:.80}"
        raise LLMInvalidRequestError(_NOT_A_TYPE.format(what=what, given=shown), param=what)
    try:
        adapter = pydantic.TypeAdapter(_rebuilt(given, {}))
        schema = adapter.json_schema()
    except Exception as error:  # an annotation that leads nowhere, a type without a schema
        reason = said(error).partition("\n")[0]
    else:
        return Schema(getattr(given, "__name__", str(given)), schema, _Type(adapter))
    raise LLMInvalidRequestError(f"{what}: no schema can be made of {given!r:.80}: {reason[:300]}", param=what)


def _rebuilt(hint: Any, known: dict[Any, Any]) -> Any:
    """Return an annotation with its TypedDicts made anew by typing_extensions: before 3.12 pydantic refuses those of typing."""
    if sys.version_info >= (3, 12):
        return hint
    if typing_extensions.is_typeddict(hint):
        return known[hint] if hint in known else _rebuilt_dict(hint, known)
    arguments = typing.get_args(hint)
    renewed = tuple(_rebuilt(argument, known) for argument in arguments)
    if all(new is old for new, old in zip(renewed, arguments, strict=True)):
        return hint
    if isinstance(hint, UnionType):
        return typing.Union[renewed]  # noqa: UP007  # made at run time
    if typing.get_origin(hint) is typing.Annotated:
        return typing.Annotated[renewed]
    return hint.copy_with(renewed) if hasattr(hint, "copy_with") else typing.get_origin(hint)[renewed]


def _rebuilt_dict(old: Any, known: dict[Any, Any]) -> Any:
    make: Any = typing_extensions.TypedDict
    new = make(old.__name__, {})  # its fields come once it can hold itself
    new.__doc__, new.__module__ = old.__doc__, old.__module__
    known[old] = new
    hints = typing_extensions.get_type_hints(old, include_extras=True)
    new.__annotations__ = {name: _rebuilt(hint, known) for name, hint in hints.items()}
    new.__required_keys__, new.__optional_keys__ = old.__required_keys__, old.__optional_keys__
    if hasattr(old, "__pydantic_config__"):
        new.__pydantic_config__ = old.__pydantic_config__
    return new


# --- JSON schemas, by jsonschema --------------------------------------------------------------------------------------


class _Rules:
    """A JSON schema; None as its validator lets every value through."""

    __slots__ = ("_validator",)

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def parse(self, text: str) -> Any:
        value = load(text)
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        if self._validator is None:
            return
        before = _WATCH.set(_Watch())
        try:
            found = list(islice(self._validator.iter_errors(value), _MAX_ERRORS))
        finally:
            _WATCH.reset(before)
        if found:
            raise SchemaError([f"{error.json_path}: {error.message}" for error in found])


class _Watch:
    """The time that one check may take."""

    __slots__ = ("_end", "_patterns")

    def __init__(self) -> None:
        self._end = time.monotonic() + _CHECK_S
        self._patterns = _PATTERNS_S

    def look(self) -> None:
        """Stop a check whose references double with every step."""
        if time.monotonic() > self._end:
            raise SchemaError([f"the check took longer than {_CHECK_S:g} s"])

    def search(self, pattern: str, text: str) -> bool:
        """Say whether a pattern is found; one that takes long (``(a+)+$``) ends the check."""
        began = time.monotonic()
        try:
            return library("regex").search(pattern, text, timeout=min(_PATTERN_S, self._patterns)) is not None
        except TimeoutError:
            pass
        finally:
            self._patterns = max(self._patterns - (time.monotonic() - began), 1e-6)
        raise SchemaError([f"the pattern {pattern[:100]!r} takes too long"])


_WATCH: ContextVar[_Watch] = ContextVar("jazz_llm_watch")


@lru_cache(256)
def _of_dict(text: str, what: str) -> Schema:
    schema: dict[str, Any] = json.loads(text)
    jsonschema, referencing = library("jsonschema"), library("referencing")
    library("regex")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema, format_checker=jsonschema.FormatChecker(formats=()))
    except jsonschema.SchemaError as error:
        place, reason = error.json_path, f"it is not a JSON schema: {error.message[:_MAX_ERROR]}"
    except RecursionError:
        place, reason = "$", "it is nested too deeply"
    else:
        checked: dict[str, Any] = json.loads(text)  # without "$schema", which would choose validators of its own on the way
        _Inspection(checked, kind, what).run()
        validator = _watched(kind)(checked, registry=referencing.Registry())
        return Schema(str(schema.get("title") or "answer"), schema, _Rules(validator))
    raise _refused(what, place, reason)


def _plain(value: Any, what: str, place: str = "$", depth: int = 0, count: list[int] | None = None) -> Any:
    """Return a copy in dicts and lists alone; what is not JSON, or too deep to look at, is refused with its place."""
    count = [0] if count is None else count
    count[0] += 1
    if depth > MAX_DEPTH or count[0] > _MAX_NODES:
        reason = f"deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"larger than {_MAX_NODES} values"
        raise _refused(what, place, f"it is {reason}")
    if isinstance(value, Mapping):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise _refused(what, place, f"it is not JSON: a name is {type(wrong[0]).__name__}")
        return {name: _plain(item, what, f"{place}.{name}", depth + 1, count) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, what, f"{place}[{i}]", depth + 1, count) for i, item in enumerate(value)]
    if isinstance(value, int) and value.bit_length() > 63:
        raise _refused(what, place, "it holds an integer of more than 64 bits")
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    shown = repr(value) if isinstance(value, float) else type(value).__name__
    raise _refused(what, place, f"it is not JSON: {shown}")


class _Inspection:
    """Look at every schema in a schema once: its patterns, and where its references lead. Nothing is fetched."""

    def __init__(self, root: dict[str, Any], kind: Any, what: str) -> None:
        self._what = what
        self._specification = library("referencing.jsonschema").specification_with(kind.ID_OF(kind.META_SCHEMA))
        resolver = library("referencing").Registry().resolver_with_root(self._specification.create_resource(root))
        self._todo: list[tuple[str, Any, Any]] = [("$", root, resolver)]
        self._places: dict[int, str] = {}
        self._again: dict[int, list[int]] = {}  # the schemas that look at the same value as a schema does
        self._words: set[str] = set()

    def run(self) -> None:
        """Raise ``LLMInvalidRequestError`` for what cannot be checked."""
        while self._todo:
            place, schema, resolver = self._todo.pop()
            if isinstance(schema, dict) and id(schema) not in self._places:
                self._places[id(schema)] = place
                self._look(place, schema, resolver)
        if {"patternProperties", "unevaluatedProperties"} <= self._words:  # jsonschema runs these by ``re``, without a timeout
            raise _refused(self._what, "$", "patternProperties beside unevaluatedProperties cannot be checked in bounded time")
        try:
            TopologicalSorter(self._again).prepare()
        except CycleError as error:
            loop = error.args[1]
        else:
            return
        raise _refused(self._what, self._places[loop[0]], "a $ref leads only to itself")

    def _look(self, place: str, schema: dict[str, Any], resolver: Any) -> None:
        schema.pop("$schema", None)
        self._words |= schema.keys()
        resolver = resolver.in_subresource(self._specification.create_resource(schema))
        patterns = schema.get("patternProperties")
        for pattern in [schema.get("pattern"), *(patterns if isinstance(patterns, dict) else ())]:
            self._check_pattern(place, pattern)
        again = self._again[id(schema)] = []
        for word in _REFERENCES:
            if isinstance(reference := schema.get(word), str):
                found = self._found(f"{place}.{word}", reference, resolver)
                self._todo.append((f"{place}.{word}", found.contents, found.resolver))
                again += [id(found.contents)] if word == "$ref" else []
        for word, name, inner in _held(schema):
            self._todo.append((f"{place}.{word}{name}", inner, resolver))
            again += [id(inner)] if word in _IN_PLACE else []

    def _check_pattern(self, place: str, pattern: Any) -> None:
        if not isinstance(pattern, str):
            return
        try:
            library("regex").compile(pattern)
        except Exception as error:
            reason = str(error)
        else:
            return
        raise _refused(self._what, place, f"the pattern {pattern[:100]!r} is none: {reason}")

    def _found(self, place: str, reference: str, resolver: Any) -> Any:
        try:
            return resolver.lookup(reference)
        except Exception:
            remote = "://" in reference
        reason = "is remote, and nothing is fetched" if remote else "leads nowhere"
        raise _refused(self._what, place, f"$ref {reference[:200]!r} {reason}")


def _held(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Return the schemas in a schema: the keyword, the place below it, the schema."""
    for word, value in schema.items():
        if word in _HOLDS_NAMED and isinstance(value, dict):
            yield from ((word, f".{name}", inner) for name, inner in value.items() if isinstance(inner, dict))
        elif word in _HOLDS:
            inners = enumerate(value) if isinstance(value, list) else [("", value)]
            yield from ((word, f"[{i}]" if i != "" else "", inner) for i, inner in inners if isinstance(inner, dict))


@lru_cache
def _watched(kind: Any) -> Any:
    """Return a draft's validator whose patterns, references and ``uniqueItems`` take bounded time."""
    own = {word: check for word, check in _OWN.items() if word in kind.VALIDATORS}
    own |= {word: _watched_reference(kind.VALIDATORS[word]) for word in _REFERENCES if word in kind.VALIDATORS}
    return library("jsonschema").validators.extend(kind, own)


def _watched_reference(follow: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    def check(validator: Any, reference: Any, instance: Any, schema: Any) -> Iterator[Any]:
        _WATCH.get().look()
        yield from follow(validator, reference, instance, schema) or ()

    return check


# jsonschema calls these with the validator, the keyword's value, the instance and the schema.


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _WATCH.get().search(pattern, instance):
        yield _misfit(f"{instance[:100]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[Any]:
    for pattern, inner in patterns.items() if validator.is_type(instance, "object") else ():
        for name, value in instance.items():
            if _WATCH.get().search(pattern, name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, inner: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object") or inner is True:
        return
    known, patterns, search = schema.get("properties", {}), schema.get("patternProperties", {}), _WATCH.get().search
    extras = [name for name in instance if name not in known and not any(search(pattern, name) for pattern in patterns)]
    if validator.is_type(inner, "object"):
        for name in extras:
            yield from validator.descend(instance[name], inner, path=name)
    elif extras:
        yield _misfit(f"additional properties are not allowed: {', '.join(map(repr, extras[:_MAX_ERRORS]))}")


def _any_of(validator: Any, inners: Any, instance: Any, _: Any) -> Iterator[Any]:
    """Look for one that fits: jsonschema keeps every error of the others, 2 KB for each value of a long list."""
    if not any(_fits(validator, inner, instance) for inner in inners):
        yield _misfit("it is not valid under any of the given schemas (anyOf)")


def _one_of(validator: Any, inners: Any, instance: Any, _: Any) -> Iterator[Any]:
    fitting = sum(_fits(validator, inner, instance) for inner in inners)
    if fitting != 1:
        yield _misfit(f"it is valid under {fitting or 'none'} of the given schemas, not under one (oneOf)")


def _fits(validator: Any, inner: Any, instance: Any) -> bool:
    _WATCH.get().look()  # a message of jsonschema's holds the whole value: with every level of a deep one, once more
    return next(validator.descend(instance, inner), None) is None


def _unique_items(validator: Any, asked: Any, instance: Any, _: Any) -> Iterator[Any]:
    """Compare by hash: jsonschema compares each object with each."""
    if asked and validator.is_type(instance, "array") and len(set(map(_key, instance))) < len(instance):
        yield _misfit("its items are not unique")


_OWN: dict[str, Callable[..., Iterator[Any]]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "uniqueItems": _unique_items,
}


def _misfit(message: str) -> Any:
    return library("jsonschema").ValidationError(message)


def _key(value: Any) -> Any:
    """Return what is equal for values that JSON schema calls equal: 1 and 1.0 are, 1 and true are not.

    A number is its text there: a stranger can write numbers that have one hash, of texts nobody knows the hash before.
    """
    if isinstance(value, dict):
        return frozenset((name, _key(item)) for name, item in value.items())
    if isinstance(value, list):
        return tuple(map(_key, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else (type(value) is bool, str(value))
