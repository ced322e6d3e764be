from __future__ import annotations

import json
import random

from jazz_llm.gateway.outbox import Outbox
from jazz_llm.gateway.protocol import Chunks


def taken(outbox: Outbox) -> list[dict]:
    messages = []
    while outbox:
        messages.append(json.loads(outbox.take()))
    return messages


def test_messages_keep_their_order() -> None:
    outbox = Outbox()
    assert not outbox
    for n in range(3):
        outbox.put(b'{"n": %d}' % n)
    assert [message["n"] for message in taken(outbox)] == [0, 1, 2]


def test_chunks_of_one_generation_grow_together() -> None:
    outbox, one, two = Outbox(), Chunks("1"), Chunks("2")
    for text in "abc":
        outbox.put_chunk(one, text)
        outbox.put_chunk(two, text.upper())
    outbox.put(b'{"type": "done"}')
    assert [(m.get("unique_request_id"), m.get("chunk")) for m in taken(outbox)] == [("1", "abc"), ("2", "ABC"), (None, None)]


def test_what_was_taken_does_not_grow() -> None:
    outbox, one = Outbox(), Chunks("1")
    outbox.put_chunk(one, "a")
    assert json.loads(outbox.take())["chunk"] == "a"
    outbox.put_chunk(one, "b")
    assert json.loads(outbox.take())["chunk"] == "b"


def test_chunks_grow_no_larger_than_clients_take() -> None:
    outbox, one = Outbox(largest_chunk=4), Chunks("1")
    for _ in range(10):
        outbox.put_chunk(one, "é")
    assert [message["chunk"] for message in taken(outbox)] == ["éé"] * 5


def test_it_is_hopeless_beyond_its_bound() -> None:
    outbox, one = Outbox(most=100), Chunks("1")
    outbox.put(b"x" * 60)
    outbox.put_chunk(one, "y" * 40)
    assert not outbox.hopeless
    outbox.put_chunk(one, "z")
    assert outbox.hopeless
    outbox.take()
    assert not outbox.hopeless
    outbox.clear()
    assert not outbox


def test_nothing_is_lost_whatever_comes_and_goes() -> None:
    dice = random.Random(7)
    outbox, generations = Outbox(largest_chunk=20), [Chunks(str(n)) for n in range(3)]
    sent: dict[str, str] = {str(n): "" for n in range(3)}
    heard = dict(sent)
    for step in range(3000):
        n = dice.randrange(3)
        text = dice.choice(["a", "ü", "\ud800", "long" * 5, str(step)])
        if dice.random() < 0.6:
            outbox.put_chunk(generations[n], text)
            sent[str(n)] += text
        elif outbox:
            message = json.loads(outbox.take())
            heard[message["unique_request_id"]] += message["chunk"]
    for message in taken(outbox):
        heard[message["unique_request_id"]] += message["chunk"]
    assert heard == sent
    assert outbox._size == 0
    assert not outbox._last
