"""A JSON schema -> the same in OpenAI's strict subset, which is what constrained decoding there takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import LLMCapabilityError

# What the subset lacks: platform.openai.com/docs/guides/structured-outputs, and where it says nothing, what the API
# answers: "'oneOf' is not permitted", "'uniqueItems' is not permitted".
_LACKS = frozenset(
    (
        *("allOf", "not", "oneOf", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"),
        *("additionalItems", "contains", "maxContains", "minContains", "prefixItems", "unevaluatedItems", "uniqueItems"),
        *("$dynamicRef", "$recursiveRef"),
    )
)
_SAYS_WHAT = ("type", "anyOf", "$ref", "enum", "const")  # an open schema ({}, ``Any``) has none of them
_DROPPED = frozenset({"default", "$schema", "$id", "examples"})
_MAX_STRICT = 100_000  # what a reference stands for is copied, and that may double with every level


def strict(schema: Mapping[str, Any], what: str = "response_format", provider: str | None = None) -> dict[str, Any]:
    """Return a schema in OpenAI's strict subset: every property is required, and there are no others.

    Raises:
        LLMCapabilityError: It says what the subset cannot; the message names the keyword and its place.
    """
    return _Strict(schema, what, provider).root()


class _Strict:
    """The way from a schema to the strict one."""

    def __init__(self, schema: Mapping[str, Any], what: str, provider: str | None) -> None:
        self._schema = schema
        self._what = what
        self._provider = provider
        self._left = _MAX_STRICT

    def root(self) -> dict[str, Any]:
        root = dict(self._schema)
        inlined: set[str] = set()
        while isinstance(reference := root.get("$ref"), str) and reference not in inlined:
            inlined.add(reference)
            siblings = {name: value for name, value in root.items() if name != "$ref"}
            root = {**self._target(reference, "$"), **siblings}
        if root.get("type") != "object" or "anyOf" in root:
            raise self._lacking("a root that is no object", "$")
        return self._made(root, "$", frozenset())

    def _made(self, schema: Any, place: str, within: frozenset[str]) -> dict[str, Any]:
        """Return one schema made strict; ``within`` are the references that stand for it and for what holds it."""
        self._left -= 1
        if self._left < 0:
            raise self._lacking(f"more than {_MAX_STRICT} schemas", place)
        if not isinstance(schema, Mapping) or not any(word in schema for word in _SAYS_WHAT):
            raise self._lacking("a schema without a type", place)
        if lacking := sorted(_LACKS & schema.keys()):
            raise self._lacking(repr(lacking[0]), place)
        if isinstance(schema.get("$ref"), str):
            return self._referring(schema, place, within)
        kept = ((name, value) for name, value in schema.items() if name not in _DROPPED)
        made = {name: self._value(name, value, f"{place}.{name}", within) for name, value in kept}
        kinds = schema.get("type")
        if kinds == "array" and "items" not in schema:
            raise self._lacking("an array without 'items'", place)
        return self._closed(schema, made, place) if "object" in (kinds if isinstance(kinds, list) else [kinds]) else made

    def _referring(self, schema: Mapping[str, Any], place: str, within: frozenset[str]) -> dict[str, Any]:
        """Return a reference alone, or where it has siblings what it stands for, with them."""
        reference = schema["$ref"]
        target = self._target(reference, place)
        siblings = {name: value for name, value in schema.items() if name not in {"$ref", "$defs", "definitions", *_DROPPED}}
        if not siblings or reference in within:  # a tree holds itself: there the reference stays, and its siblings go
            return {"$ref": reference}
        return self._made({**target, **siblings}, place, within | {reference})

    def _value(self, word: str, value: Any, place: str, within: frozenset[str]) -> Any:
        if word in {"properties", "$defs", "definitions"} and isinstance(value, Mapping):
            return {name: self._made(inner, f"{place}.{name}", within) for name, inner in value.items()}
        if word == "anyOf" and isinstance(value, list):
            return [self._made(inner, f"{place}[{i}]", within) for i, inner in enumerate(value)]
        return self._made(value, place, within) if word == "items" else value

    def _closed(self, schema: Mapping[str, Any], made: dict[str, Any], place: str) -> dict[str, Any]:
        others = schema.get("additionalProperties", "properties" not in schema)
        if others is not False:
            raise self._lacking("an open map ('additionalProperties')", place)
        return {**made, "required": list(made.get("properties", {})), "additionalProperties": False}

    def _target(self, reference: str, place: str) -> Mapping[str, Any]:
        found: Any = self._schema
        for step in reference.removeprefix("#").split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if not (reference == "#" or reference.startswith("#/")) or not isinstance(found, Mapping):
            raise self._lacking(f"the reference {reference!r}", place)
        return found

    def _lacking(self, thing: str, place: str) -> LLMCapabilityError:
        message = f"{self._what}: OpenAI's strict subset of JSON schema has no place for {thing} (at {place[:200]})."
        return LLMCapabilityError(message, provider=self._provider)
