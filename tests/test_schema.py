"""Types and dicts -> schemas, texts -> values; and what strangers and users hand in that must not run for long."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
import threading
import time
import tracemalloc
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, NotRequired, Optional, TypeVar, Union

import pytest
import typing_extensions
from pydantic import BaseModel, Field, RootModel, field_validator

from jazz_llm import LLMCapabilityError, LLMConfigurationError, LLMError, LLMInvalidRequestError
from jazz_llm.schema import Schema, SchemaError, schema_of
from jazz_llm.strict import strict

ITEM = TypeVar("ITEM")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    name: str
    colour: Colour
    size: Literal["s", "l"] = "s"
    weight: Optional[float] = None  # noqa: UP045  # the older spelling is a kind of its own


class Order(BaseModel):
    number: int
    parts: list[Part]


class Page(BaseModel, Generic[ITEM]):
    items: list[ITEM]


class Tree(BaseModel):
    value: int
    children: list[Tree] = []
    twin: Tree | None = Field(None, description="the other one")


@dataclass
class Box:
    width: int
    parts: list[Part] = field(default_factory=list)


class Place(typing.TypedDict):  # typing's, which pydantic refuses on 3.11
    street: str
    number: NotRequired[int]


class Person(typing.TypedDict, total=False):
    name: typing_extensions.Required[str]
    homes: list[Place]
    first: Optional[Place]  # noqa: UP045
    last: Place | None
    by_name: dict[str, Annotated[Place, "where"]]
    friend: Union[Person, None]  # noqa: UP007  # it holds itself


class Extended(typing_extensions.TypedDict):
    name: str
    place: NotRequired[Place]


def refused(given: Any) -> str:
    with pytest.raises(LLMInvalidRequestError) as caught:
        schema_of(given)
    assert caught.value.status_code is None
    return caught.value.message


def wrong(given: Any, text: str) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        schema_of(given).parse(text)
    assert 0 < len(caught.value.errors) <= 10
    assert max(map(len, caught.value.errors)) <= 300
    return caught.value.errors


def lacking(given: Any) -> str:
    with pytest.raises(LLMCapabilityError) as caught:
        schema_of(given).strict("openai")
    assert caught.value.provider == "openai"
    return caught.value.message


def within(seconds: float, act: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = act()
    assert time.perf_counter() - began < seconds
    return result


# --- Every kind ------------------------------------------------------------------------------------------------------


def test_a_model_with_models_enums_and_lists_in_it() -> None:
    text = '{"number": 1, "parts": [{"name": "a", "colour": "red", "size": "l", "weight": 2}]}'
    assert schema_of(Order).parse(text) == Order(number=1, parts=[Part(name="a", colour=Colour.RED, size="l", weight=2.0)])
    assert schema_of(Order).name == "Order"
    assert schema_of(Order).json == Order.model_json_schema()


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ('{"name": 1, "colour": "red"}', "parts.0.name"),
        ('{"name": "a", "colour": "green"}', "parts.0.colour"),
        ('{"name": "a", "colour": "red", "size": "m"}', "parts.0.size"),
        ('{"name": "a", "colour": "red", "weight": "heavy"}', "parts.0.weight"),
        ('{"name": "a"}', "parts.0.colour"),
    ],
)
def test_what_does_not_fit_a_model_is_told_with_its_place(part: str, place: str) -> None:
    errors = wrong(Order, f'{{"number": 1, "parts": [{part}]}}')
    assert [error.partition(":")[0] for error in errors] == [place]


def test_a_dataclass() -> None:
    assert schema_of(Box).parse('{"width": 2, "parts": [{"name": "a", "colour": "blue"}]}') == Box(2, [Part(name="a", colour=Colour.BLUE)])
    assert wrong(Box, '{"width": "wide"}')[0].startswith("width: ")


def test_typings_typed_dict_on_every_python() -> None:
    place = {"street": "High St", "number": 3}
    person = {"name": "Ada", "homes": [place], "first": None, "last": place, "by_name": {"x": place}, "friend": {"name": "Bo"}}
    assert schema_of(Person).parse(json.dumps(person)) == person
    assert schema_of(Person).json["$defs"]["Person"]["required"] == ["name"]
    assert schema_of(Place).json["required"] == ["street"]
    assert schema_of(Person).name == "Person"
    for inside in ('"homes": [{}]', '"first": {}', '"last": {}', '"by_name": {"x": {}}', '"friend": {"name": "Bo", "last": {}}'):
        assert "street" in wrong(Person, f'{{"name": "Ada", {inside}}}')[0]


def test_typing_extensions_typed_dict() -> None:
    assert schema_of(Extended).parse('{"name": "Ada", "place": {"street": "x"}}') == {"name": "Ada", "place": {"street": "x"}}
    assert wrong(Extended, '{"place": {"street": "x"}}') == ["name: Field required"]


def test_a_generic_model_and_its_name() -> None:
    assert schema_of(Page[Part]).name == "Page_Part_"  # OpenAI: a-z, A-Z, 0-9, _ and -
    assert schema_of(Page[int]).parse('{"items": [1]}').items == [1]


def test_a_model_that_holds_itself() -> None:
    tree = schema_of(Tree).parse('{"value": 1, "children": [{"value": 2, "twin": {"value": 3}}]}')
    assert tree.children[0].twin == Tree(value=3)
    assert wrong(Tree, '{"value": 1, "children": [{"value": "x"}]}')[0].startswith("children.0.value: ")


def test_a_dict() -> None:
    given = MappingProxyType({"title": "A point!", "type": "object", "properties": {"x": {"type": "integer"}}, "required": ("x",)})
    schema = schema_of(given)
    assert schema.name == "A_point_"
    assert schema.json["required"] == ["x"]
    assert schema.parse('{"x": 1}') == {"x": 1}
    assert wrong(given, '{"x": "1"}') == ["$.x: '1' is not of type 'integer'"]
    assert schema.check({"x": 1}) == []
    assert schema.check({}) == ["$: 'x' is a required property"]


def test_a_dict_that_holds_itself() -> None:
    given = {"type": "object", "properties": {"next": {"$ref": "#"}, "value": {"type": "integer"}}, "$schema": "https://json-schema.org/draft/2020-12/schema"}
    assert schema_of(given).parse('{"next": {"next": {"value": 1}}}') == {"next": {"next": {"value": 1}}}
    assert wrong(given, '{"next": {"next": {"value": "x"}}}') == ["$.next.next.value: 'x' is not of type 'integer'"]


def test_an_older_draft_is_obeyed() -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 1, "exclusiveMinimum": True}
    assert schema_of(draft4).check(1) != []
    assert "exclusiveMinimum" in refused({**draft4, "$schema": "https://json-schema.org/draft/2020-12/schema"})


def test_references_inside_a_schema_are_followed() -> None:
    anchors = {"$defs": {"a": {"$anchor": "here", "type": "integer"}}, "properties": {"x": {"$ref": "#here"}}}
    ids = {"$id": "https://example.com/s", "$defs": {"a": {"$id": "/t", "type": "integer"}}, "properties": {"x": {"$ref": "https://example.com/t"}}}
    inner = {"$id": "https://example.com/inner", "$defs": {"t": {"type": "integer"}}, "$ref": "#/$defs/t"}
    for given in (anchors, ids, {"properties": {"x": inner}}):
        assert schema_of(given).check({"x": 1}) == []
        assert schema_of(given).check({"x": "1"}) == ["$.x: '1' is not of type 'integer'"]


def test_openais_own_form_is_kept_as_it_is() -> None:
    given = {"type": "json_schema", "json_schema": {"name": "point", "strict": True, "schema": {"type": "object", "required": ["x"]}}}
    schema = schema_of(given)
    assert (schema.wire, schema.name, schema.json) == (given, "point", {"type": "object", "required": ["x"]})
    assert wrong(given, "{}") == ["$: 'x' is a required property"]
    assert schema_of({"type": "json_object"}).parse('[{"any": "JSON"}]') == [{"any": "JSON"}]
    assert wrong({"type": "json_object"}, "text")[0].startswith("not JSON")
    assert schema_of({"type": "object"}).wire is None


def test_what_was_made_once_is_used_again() -> None:
    assert schema_of(Order) is schema_of(Order)
    assert schema_of({"type": "object"}) is schema_of({"type": "object"})
    assert isinstance(schema_of(schema_of(Order)), Schema)


@pytest.mark.parametrize("given", [5, "Order", int, list[int], [], Order(number=1, parts=[]), Box(1), lambda: 0, Colour], ids=repr)
def test_what_is_no_type_is_refused(given: Any) -> None:
    assert refused(given).startswith("response_format must be a pydantic model, a dataclass, a TypedDict or a JSON schema as a dict")


def test_a_type_without_a_schema_is_refused() -> None:
    class Odd(BaseModel):
        model_config = {"arbitrary_types_allowed": True}
        lock: threading.Event

    class Nowhere(typing_extensions.TypedDict):
        x: Missing  # type: ignore[name-defined]  # noqa: F821

    assert "no schema can be made of" in refused(Odd)
    assert "no schema can be made of" in refused(Nowhere)


# --- Texts ------------------------------------------------------------------------------------------------------------

FENCED = ['{"value": 1}', ' \n{"value": 1}\t\n', '```json\n{"value": 1}\n```', '```\n{"value": 1}\n```\n', '```JSON {"value": 1}```', '\n```json\n\n{"value": 1}\n\n```\n\n']


@pytest.mark.parametrize("text", FENCED)
@pytest.mark.parametrize("given", [Tree, {"type": "object"}], ids=["type", "dict"])
def test_white_space_and_one_fence_may_stand_around(given: Any, text: str) -> None:
    value = schema_of(given).parse(text)
    assert value in ({"value": 1}, Tree(value=1))


@pytest.mark.parametrize(
    "text",
    ["", " ", "```", "```json\n```", "Here it is: {}", '{"value": 1} Done.', '```json\n{"value": 1}', "```json\n```json\n{}\n```\n```", '{"value": 1}{"value": 1}'],
)
@pytest.mark.parametrize("given", [Tree, {"type": "object"}], ids=["type", "dict"])
def test_anything_else_around_it_is_not_json(given: Any, text: str) -> None:
    assert wrong(given, text)[0].startswith("not JSON: ")


@pytest.mark.parametrize("given", [Tree, {"type": "object"}], ids=["type", "dict"])
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"value": NaN}', "not JSON: NaN"),
        ('{"value": -Infinity}', "not JSON: -Infinity"),
        ('{"value": 1, "value": 2}', "not JSON: the name 'value' stands twice in an object"),
        ('{"value": 1, "children": [{"value": 1, "value": 1}]}', "not JSON: the name 'value' stands twice in an object"),
        ('{"value": %s}' % ("9" * 5000), "not JSON: Exceeds the limit (4300 digits)"),
        ("[" * 100_000, "not JSON: it is nested too deeply"),
        ('{"value": 1', "not JSON: "),
        ('{"value": "\ud800"', "not JSON: "),
    ],
    ids=["nan", "infinity", "twice", "twice within", "huge", "deep", "cut", "surrogate"],
)
def test_bad_json_ends_at_once(given: Any, text: str, error: str) -> None:
    assert within(5.0, lambda: wrong(given, text))[0].startswith(error)


def test_depth_that_json_reads_and_a_validator_does_not() -> None:
    deep = '{"next": ' * 900 + "{}" + "}" * 900
    given = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert within(5.0, lambda: wrong(given, deep)) == ["it is nested too deeply"]
    assert "recursion" in wrong(Tree, '{"value": 1, "twin": ' * 900 + "null" + "}" * 900)[0]


def test_many_errors_are_told_in_few_words() -> None:
    text = json.dumps({"number": 1, "parts": [0] * 200_000})
    tracemalloc.start()
    try:
        assert within(10.0, lambda: wrong(Order, text)) == ["200000 values do not fit"]
        assert tracemalloc.get_traced_memory()[1] < 40 * len(text)
    finally:
        tracemalloc.stop()
    given = {"items": {"type": "string"}}
    assert len(within(5.0, lambda: wrong(given, json.dumps([0] * 200_000)))) == 10
    assert len(wrong({"enum": ["x" * 10_000]}, "1")[0]) == 300


def test_a_validator_of_the_users_that_fails() -> None:
    class Buggy(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def look(cls, x: int) -> int:
            raise KeyError("oops")

    assert wrong(Buggy, '{"x": 1}') == ["KeyError: 'oops'"]
    assert schema_of(Buggy).check({"x": 1}) == ["KeyError: 'oops'"]


# --- Schemas that must not run for long ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"$ref": "http://example.com/schema"}, ["'http://example.com/schema' is remote", "$.$ref"]),
        ({"properties": {"a": {"items": {"$ref": "https://example.com/x#/y"}}}}, ["is remote", "$.properties.a.items.$ref"]),
        ({"$ref": "file:///etc/passwd"}, ["is remote"]),
        ({"$ref": "#"}, ["leads only to itself", "(at $)"]),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "properties": {"x": {"$ref": "#/$defs/a"}}}, ["leads only to itself"]),
        ({"properties": {"a": {"$ref": "#/$defs/nowhere"}}}, ["'#/$defs/nowhere' leads nowhere", "$.properties.a.$ref"]),
        ({"properties": {"a": {"type": "text"}}}, ["is not a JSON schema", "$.properties.a.type"]),
        ({"properties": {"a": {"pattern": "("}}}, ["the pattern '('", "$.properties.a"]),
        ({"properties": {"a": {"const": float("nan")}}}, ["not JSON: nan", "$.properties.a.const"]),
        ({"properties": {"a": {"default": {1}}}}, ["not JSON: set", "$.properties.a.default"]),
        ({"properties": {"a": {"maximum": 10**5000}}}, ["more than 64 bits", "$.properties.a.maximum"]),
        ({"properties": {1: {}}}, ["a name is int", "$.properties"]),
        ({"patternProperties": {"(a+)+$": {}}, "unevaluatedProperties": False}, ["bounded time"]),
        ({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}, ["response_format.json_schema.schema", "only to itself"]),
    ],
)
def test_a_schema_that_cannot_be_checked_is_refused_with_its_place(given: Any, words: list[str]) -> None:
    message = within(5.0, lambda: refused(given))
    assert [word for word in words if word not in message] == []


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket, "socket", None)
    refused({"$ref": "http://127.0.0.1:1/x"})
    assert schema_of({"$schema": "http://127.0.0.1:1/own", "type": "object"}).parse("{}") == {}


def nested(depth: int, inner: Any = None) -> Any:
    schema: Any = inner or {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


def test_a_schema_too_deep_or_too_large_is_refused() -> None:
    assert "deeper than 100 levels" in within(5.0, lambda: refused(nested(5000)))
    assert schema_of(nested(45, {"type": "string"})).check({}) == []
    cycle: dict[str, Any] = {}
    cycle["properties"] = {"a": cycle}
    assert "deeper than 100 levels" in refused(cycle)
    doubling: Any = {}
    for _ in range(30):  # 2 ** 30 schemas, of 31 objects
        doubling = {"allOf": [doubling, doubling]}
    assert "larger than 20000 values" in within(5.0, lambda: refused(doubling))


def slow(many: int = 40) -> str:
    return "a" * many + "!"


SLOW = r"^(a|a)+$"  # (a+)+$ is one that ``regex`` is quick at


def test_a_pattern_that_takes_long_ends_the_check() -> None:
    assert wrong({"pattern": "(a+)+$"}, json.dumps(slow())) == [f"$: '{slow()}' does not match '(a+)+$'"]
    for given, value in [
        ({"pattern": SLOW}, slow()),
        ({"patternProperties": {SLOW: {}}}, {slow(): 1}),
        ({"patternProperties": {SLOW: {}}, "additionalProperties": False}, {slow(): 1}),
        ({"propertyNames": {"pattern": SLOW}}, {slow(): 1}),
        ({"items": {"anyOf": [{"pattern": SLOW}]}}, [slow() + str(i) for i in range(50)]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": {"pattern": SLOW}}, [slow()]),
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "items": {"$ref": "#"}, "pattern": SLOW}, [slow()]),
    ]:
        assert "takes too long" in within(5.0, lambda given=given, value=value: wrong(given, json.dumps(value)))[0]


def test_all_patterns_of_an_answer_share_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    schema, value = schema_of({"items": {"not": {"pattern": SLOW}}}), [slow(12)] * 50  # each some 2 ms
    monkeypatch.setattr("jazz_llm.schema._PATTERNS_S", 60.0)
    assert schema.check(value) == []
    monkeypatch.setattr("jazz_llm.schema._PATTERNS_S", 0.01)
    assert "takes too long" in schema.check(value)[0]


def test_patterns_names_and_unique_items_still_mean_what_they_say() -> None:
    given = {"patternProperties": {"^x": {"type": "integer"}}, "properties": {"y": {}}, "additionalProperties": {"type": "string"}}
    assert schema_of(given).check({"x1": 1, "y": None, "z": "text"}) == []
    assert len(schema_of(given).check({"x1": "1", "z": 1})) == 2
    closed = {**given, "additionalProperties": False}
    assert schema_of(closed).check({"x1": 1, "y": 1}) == []
    assert schema_of(closed).check({"z": 1}) == ["$: additional properties are not allowed: 'z'"]
    unique = schema_of({"uniqueItems": True})
    assert unique.check([1, True, 0, False, "1", [1], [True], {"a": 1}, {"a": True}]) == []
    for twice in ([1, 1.0], [{"a": 1, "b": 2}, {"b": 2, "a": 1.0}], [[1, [2]], [1, [2]]]):
        assert unique.check(twice) == ["$: its items are not unique"]
    assert within(5.0, lambda: unique.check([{"a": i} for i in range(20_000)])) == []
    assert within(5.0, lambda: unique.check([i * (2**61 - 1) for i in range(100_000)])) == []  # integers of one hash: 60 s


@pytest.mark.parametrize("word", ["anyOf", "oneOf"])
def test_of_alternatives_no_errors_are_kept(word: str) -> None:
    """Jsonschema keeps them all, 1 KB for each value of the list."""
    listed = "[" + "1," * 200_000 + "1]"
    tracemalloc.start()
    try:
        assert wrong({word: [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}, listed)[0].startswith("$: it is")
        assert tracemalloc.get_traced_memory()[1] < 50e6  # 250 MB with them
    finally:
        tracemalloc.stop()


def test_errors_that_hold_the_value_with_every_level_end_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 5 MB 80 levels deep they took 26 s, and 800 MB."""
    monkeypatch.setattr("jazz_llm.schema._CHECK_S", 0.05)
    branch = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    deep = '{"a":' * 60 + json.dumps("x" * 500_000) + "}" * 60
    assert wrong({"anyOf": [branch, {"type": "null"}]}, deep) == ["the check took longer than 0.05 s"]


def test_alternatives_still_mean_what_they_say() -> None:
    for word, fits, fits_not in [("anyOf", [1, 7, "x", None], [True, []]), ("oneOf", [1, "x", None], [True, [], 7])]:
        schema = schema_of({word: [{"type": ["string", "null"]}, {"type": "integer"}, {"type": "number", "minimum": 5}]})
        assert [value for value in (*fits, *fits_not) if not schema.check(value)] == fits


def test_an_exception_that_cannot_be_shown_is_no_other() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    class Fussy(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def refuse(cls, _: int) -> int:
            raise MuteError

    class Hooked(BaseModel):
        @classmethod
        def __get_pydantic_json_schema__(cls, *_: Any) -> Any:
            raise MuteError

    with pytest.raises(SchemaError, match="Mute"):
        schema_of(Fussy).parse('{"x": 1}')
    with pytest.raises(LLMInvalidRequestError, match="Mute"):
        schema_of(Hooked)


def test_references_that_double_with_every_step_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jazz_llm.schema._CHECK_S", 0.3)
    levels = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    given = {"$ref": "#/$defs/a0", "$defs": {**levels, "a40": {"type": "integer"}}}
    assert within(5.0, lambda: wrong(given, '"x"')) == ["the check took longer than 0.3 s"]


# --- OpenAI's strict subset -------------------------------------------------------------------------------------------


def test_strict_asks_for_every_property_and_no_others() -> None:
    made = schema_of(Order).strict()
    part = made["$defs"]["Part"]
    assert made["required"] == ["number", "parts"]
    assert part["required"] == ["name", "colour", "size", "weight"]
    assert made["additionalProperties"] is part["additionalProperties"] is False
    assert "default" not in json.dumps(made)
    assert schema_of(Order).json["$defs"]["Part"]["required"] == ["name", "colour"]  # the schema itself stays as it was
    assert schema_of(Order).strict() is made


def test_strict_puts_the_root_in_the_place_of_its_reference() -> None:
    made = schema_of(Tree).strict()
    assert "$ref" not in made
    assert made["type"] == "object"
    assert made["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    assert made["$defs"]["Tree"]["required"] == ["value", "children", "twin"]


def test_strict_leaves_no_reference_with_siblings() -> None:
    class Described(BaseModel):
        part: Part = Field(description="the first")
        tree: Tree = Field(description="a tree")

    made = schema_of(Described).strict()
    assert made["properties"]["part"]["description"] == "the first"
    assert made["properties"]["part"]["required"] == ["name", "colour", "size", "weight"]
    siblings = [found for found in references(made) if found.keys() != {"$ref"}]
    assert siblings == []


def references(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [found for item in value for found in references(item)]
    if not isinstance(value, dict):
        return []
    return [*([value] if "$ref" in value else []), *(found for item in value.values() for found in references(item))]


def test_a_reference_with_siblings_to_what_holds_it_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n", "description": "the next"}}}
    made = strict({"$defs": {"n": node}, "type": "object", "properties": {"first": {"$ref": "#/$defs/n", "description": "x"}}})
    assert made["properties"]["first"]["properties"]["next"] == {"$ref": "#/$defs/n"}


def test_strict_follows_pointers_alone() -> None:
    given = {"type": "object", "properties": {"a": {"$ref": "#here"}, "b": {"$anchor": "here", "type": "integer"}}}
    assert schema_of(given).check({"a": 1}) == []
    assert "the reference '#here' (at $.properties.a)" in lacking(given)
    pointed = {"type": "object", "properties": {"a": {"$ref": "#/$defs/x~1y~0z"}}, "$defs": {"x/y~z": {"type": "integer"}}}
    assert strict(pointed)["properties"] == pointed["properties"]


def test_names_of_properties_are_no_keywords() -> None:
    given = {"type": "object", "properties": {"not": {"type": "string"}, "default": {"type": "integer"}, "$ref": {"type": "null"}}}
    assert set(strict(given)["properties"]) == {"not", "default", "$ref"}


INTEGER = {"type": "integer"}


@pytest.mark.parametrize(
    ("inner", "thing"),
    [
        ({"allOf": [INTEGER]}, "a schema without a type"),
        ({"type": "integer", "allOf": [INTEGER]}, "'allOf'"),
        ({"type": "integer", "not": INTEGER}, "'not'"),
        ({"type": "integer", "oneOf": [INTEGER]}, "'oneOf'"),
        ({"type": "object", "properties": {}, "if": {}, "then": {}}, "'if'"),
        ({"type": "object", "properties": {}, "dependentRequired": {}}, "'dependentRequired'"),
        ({"type": "object", "properties": {}, "dependentSchemas": {}}, "'dependentSchemas'"),
        ({"type": "object", "properties": {}, "patternProperties": {}}, "'patternProperties'"),
        ({"type": "object", "properties": {}, "unevaluatedProperties": False}, "'unevaluatedProperties'"),
        ({"type": "array", "items": INTEGER, "unevaluatedItems": False}, "'unevaluatedItems'"),
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "prefixItems": [INTEGER]}, "'prefixItems'"),
        ({"type": "array"}, "an array without 'items'"),
        ({"type": "object"}, "an open map"),
        ({"type": "object", "additionalProperties": INTEGER}, "an open map"),
        ({"type": "object", "properties": {}, "additionalProperties": True}, "an open map"),
        ({"type": ["object", "null"]}, "an open map"),
        ({}, "a schema without a type"),
    ],
)
@pytest.mark.parametrize("where", ["properties", "items", "anyOf", "$defs"])
def test_what_the_subset_lacks_is_named_with_its_place(inner: Any, thing: str, where: str) -> None:
    given: dict[str, Any] = {"type": "object", "properties": {"a": INTEGER}}
    held, place = {
        "properties": ({"properties": {"a": inner}}, "$.properties.a"),
        "items": ({"properties": {"a": {"type": "array", "items": inner}}}, "$.properties.a.items"),
        "anyOf": ({"properties": {"a": {"anyOf": [INTEGER, inner]}}}, "$.properties.a.anyOf[1]"),
        "$defs": ({"$defs": {"d": inner}, "properties": {"a": {"$ref": "#/$defs/d"}}}, "$.$defs.d"),
    }[where]
    message = lacking({**given, **held})
    assert thing in message
    assert f"(at {place})" in message


@pytest.mark.parametrize("root", [{"type": "array", "items": INTEGER}, {"anyOf": [{"type": "object", "properties": {}}]}, {}, INTEGER])
def test_the_root_is_an_object(root: Any) -> None:
    assert "a root that is no object (at $)" in lacking(root)
    assert "a root that is no object" in lacking(RootModel[list[int]])


def test_types_that_the_subset_lacks() -> None:
    class Map(BaseModel):
        counts: dict[str, int]

    class Anything(BaseModel):
        x: Any

    class Tuple(BaseModel):
        x: tuple[int, str]

    assert "an open map ('additionalProperties') (at $.properties.counts)" in lacking(Map)
    assert "a schema without a type (at $.properties.x)" in lacking(Anything)
    assert "'prefixItems' (at $.properties.x)" in lacking(Tuple)
    assert schema_of(Map).parse('{"counts": {"a": 1}}').counts == {"a": 1}


def test_references_that_double_are_not_put_in_place_for_ever() -> None:
    two = {f"a{i}": {"type": "object", "properties": {name: {"$ref": f"#/$defs/a{i + 1}", "description": name} for name in "xy"}} for i in range(40)}
    given = {"$ref": "#/$defs/a0", "$defs": {**two, "a40": INTEGER}}
    assert "more than 100000 schemas" in within(10.0, lambda: lacking(given))


# --- The extra --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("missing", "given"), [("pydantic", Box), ("jsonschema", {"type": "object"}), ("regex", {"type": "object"})])
def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str, given: Any) -> None:
    from jazz_llm import schema

    for cache in (schema._made, schema._of_dict):
        cache.cache_clear()
    known = {name: None for name in sys.modules if name.partition(".")[0] == missing} | {missing: None}
    for name, nothing in known.items():
        monkeypatch.setitem(sys.modules, name, nothing)  # type: ignore[arg-type]  # what an import of it then fails on
    with pytest.raises(LLMConfigurationError, match=rf'{missing}.*pip install "jazz_llm\[schema\]"') as caught:
        schema_of(given)
    assert isinstance(caught.value, LLMError)


def test_importing_the_package_loads_nothing_of_the_extra() -> None:
    code = "import sys, jazz_llm; jazz_llm.OpenAICompatibleLLM('m', 'k'); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"pydantic", "pydantic_core", "jsonschema", "referencing", "regex", "docstring_parser", "jazz_llm.schema"}
