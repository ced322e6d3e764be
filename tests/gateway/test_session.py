"""One connection without a socket: what each message starts, ends or answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jazz_llm.gateway.protocol import Close, Generate, Load
from jazz_llm.gateway.session import Loaded, Session, Stop

LOADED = Loaded(object(), ("m1", "m2"))
MESSAGES = [{"role": "user", "content": "Hi"}]


def say(session: Session, kind: str, id_: str = "1", **fields: Any) -> list[Any]:
    """Return the steps, what is to be sent as dicts."""
    steps = session.receive(json.dumps({"type": kind, "unique_request_id": id_, **fields}))
    return [json.loads(step) if isinstance(step, bytes) else step for step in steps]


def generate(session: Session, id_: str = "1", **fields: Any) -> list[Any]:
    return say(session, "generate", id_, messages=MESSAGES, **fields)


def types(steps: list[Any]) -> list[Any]:
    return [step["type"] if isinstance(step, dict) else type(step) for step in steps]


def loaded() -> Session:
    session = Session(["p"])
    _, request = say(session, "load", "load", provider="p")
    session.finished(request)
    session.use(request, LOADED)
    return session


def test_a_load_begins() -> None:
    ack, request = say(Session(["p"]), "load", provider="p")
    assert ack == {"type": "load_ack", "unique_request_id": "1", "provider": "p"}
    assert request == Load("1", "p")


def test_a_load_takes_the_place_of_the_one_before() -> None:
    session = loaded()
    generate(session, "g")
    _, first = say(session, "load", "a", provider="p")
    assert session.loaded is None
    ack, stop, second = say(session, "load", "b", provider="p")
    assert (ack["type"], stop, second.id) == ("load_ack", Stop("a"), "b")
    session.use(first, LOADED)  # it was done just as the second one came
    assert session.loaded is None
    session.use(second, LOADED)
    assert session.loaded is LOADED


def test_a_generation_begins() -> None:
    session = loaded()
    ack, request = generate(session)
    assert ack == {"type": "generate_ack", "unique_request_id": "1"}
    assert request == Generate("1", MESSAGES)


def test_nothing_is_generated_before_something_is_loaded() -> None:
    session = Session(["p"])
    ack, done = generate(session)
    assert (ack["type"], done["type"], done["error"]) == ("generate_ack", "generate_done", "INVALID_PROVIDER")
    assert generate(session, stream=True)[1]["type"] == "generate_stream_done"
    say(session, "load", "2", provider="p")
    assert "still being loaded" in generate(session)[1]["error_detail"]


def test_a_duplicate_is_an_error_for_the_newcomer_only() -> None:
    session = loaded()
    _, first = generate(session)
    for steps in (generate(session), say(session, "load", provider="p"), say(session, "generate"), say(session, "load"), say(session, "?")):
        assert [(step["type"], step["unique_request_id"], step["error"]) for step in steps] == [("error", "1", "UNEXPECTED")]
    session.finished(first)
    assert types(generate(session)) == ["generate_ack", Generate]


def test_an_id_in_flight_may_be_that_of_a_question() -> None:
    session = loaded()
    generate(session)
    assert types(say(session, "get_models")) == ["get_models_done"]
    assert types(say(session, "interrupt")) == ["interrupt_ack", Stop]


def test_there_is_an_end_to_what_runs_at_once() -> None:
    session = Session(["p"], most=2)
    session.loaded = LOADED
    assert types(generate(session, "1") + generate(session, "2")) == ["generate_ack", Generate] * 2
    _, done = generate(session, "3", stream=True)
    assert (done["type"], done["error"]) == ("generate_stream_done", "UNEXPECTED")


def test_interrupt_ends_all_generations_or_one() -> None:
    session = loaded()
    for id_ in "abc":
        generate(session, id_)
    say(session, "load", "l", provider="p")
    assert say(session, "interrupt")[1:] == [Stop("a"), Stop("b"), Stop("c")]
    assert say(session, "interrupt", target="b")[1:] == [Stop("b")]
    assert say(session, "interrupt", target="l")[1:] == [Stop("l")]
    assert say(session, "interrupt", target="gone") == [{"type": "interrupt_ack", "unique_request_id": "1"}]


def test_close_is_for_who_may() -> None:
    ack, request = say(Session([]), "close")
    assert (ack, request) == ({"type": "close_ack", "unique_request_id": "1"}, Close("1"))
    (error,) = say(Session([], may_close=False), "close")
    assert (error["type"], error["error"]) == ("error", "AUTHORIZATION")


def test_lists() -> None:
    session = Session(["p", "q"], {"key_needed": ["q"]})
    (names,) = say(session, "get_providers")
    assert (names["providers"], names["key_needed"], names["base_url_needed"]) == (["p", "q"], ["q"], [])
    (before,) = say(session, "get_models")
    assert (before["models"], before["is_error"], before["error"]) == ([], True, "INVALID_PROVIDER")
    (after,) = say(loaded(), "get_models")
    assert (after["models"], after["providers"], after["error"]) == (["m1", "m2"], ["m1", "m2"], "SUCCESS")


@pytest.mark.parametrize("data", ["", "[]", "{}", b"\xff"])
def test_what_is_no_request_is_answered(data: str | bytes) -> None:
    (step,) = Session([]).receive(data)
    assert json.loads(step)["type"] == "error"
