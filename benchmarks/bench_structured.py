"""What it costs to read a 10 KB JSON answer into a pydantic model, the HTTP call included: CPU microseconds of the client.

The model is the same for both, and so is the server: `jazz_llm.testing.FakeServer`, in a process of its own, over HTTP/1.1.

    python -m benchmarks.bench_structured [--rounds 5]
    python -m benchmarks.bench_structured serve | PEER URL      the processes it starts
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence

from pydantic import BaseModel

from benchmarks.harness import OURS, Child, Question, Table, interruptible, note, print_table, progress, started

QUESTION = Question("a 10 KB answer, parsed and validated", "us/call", "parse", "json", times=300, limits=(("openai", 1 / 3),))
PROMPT = "List what is in stock."
COUNT = 80


class Item(BaseModel):
    """One line of the answer."""

    number: int
    name: str
    price: float
    tags: list[str]
    note: str | None


class Stock(BaseModel):
    """The answer."""

    title: str
    items: list[Item]


def answer() -> str:
    """Return the JSON that the server answers with."""
    items = [
        Item(number=i, name=f"thing number {i}", price=i * 1.25, tags=["new", "blue"], note=None if i % 3 else "\u4e16\u754c")
        for i in range(COUNT)
    ]
    return Stock(title="In stock", items=items).model_dump_json(indent=1)


# --- The peers, each in a process of its own ---


def jazz_llm(url: str) -> Callable[[], Stock | None]:
    """Return a call through ours."""
    from jazz_llm import OpenAICompatibleLLM

    llm = OpenAICompatibleLLM("fake-model", "bench", url)
    return lambda: llm.generate(PROMPT, response_format=Stock).parsed


def openai(url: str) -> Callable[[], Stock | None]:
    """Return a call through openai's `.parse()`."""
    from openai import OpenAI

    parse = OpenAI(api_key="bench", base_url=f"{url}/v1").chat.completions.parse
    messages = [{"role": "user", "content": PROMPT}]
    return lambda: parse(model="fake-model", messages=messages, response_format=Stock).choices[0].message.parsed


PEERS = {OURS: jazz_llm, "openai": openai}


def work(peer: str, url: str) -> None:
    """Make as many calls as each line of the input says, and answer with what they cost."""
    call = PEERS[peer](url)
    for line in sys.stdin:
        times = json.loads(line)["times"]
        call()
        gc.collect()
        begun = time.process_time()
        wrong = sum((stock := call()) is None or len(stock.items) != COUNT for _ in range(times))
        cost = time.process_time() - begun
        print(json.dumps({"cost": cost, "wrong": wrong}), flush=True)


def serve() -> None:
    """Answer every request with the JSON, and end when the input does."""
    from jazz_llm.testing import FakeServer

    text = answer()
    with FakeServer(lambda _, reply: reply.text(text), http2=False) as server:
        print(json.dumps({"url": server.url}), flush=True)
        sys.stdin.read()


# --- Taking turns ---


def measured(names: Sequence[str], rounds: int, times: int = QUESTION.times) -> Table:
    """Let the peers take turns, and return what a call cost each."""
    table = Table(QUESTION, {name: [] for name in names})
    with started("benchmarks.bench_structured", "serve") as server:
        url = server.reply()["url"]
        workers = {name: Child("benchmarks.bench_structured", name, url) for name in names}
        try:
            for turn in range(rounds):
                for name, child in workers.items():
                    progress(f"round {turn + 1} of {rounds}, {name}")
                    table.costs[name] += cost(name, child, times)
        finally:
            for child in workers.values():
                child.close()
    progress("")
    return table


def cost(name: str, child: Child, times: int) -> list[float]:
    """Return microseconds a call in one turn; nothing after a failure."""
    result = child.ask({"times": times})
    if result.get("error") or result["wrong"]:
        note(f"{name} left out of '{QUESTION.title}': {result.get('error') or 'it read something else'}")
        return []
    return [result["cost"] * 1e6 / times]


def main() -> int:
    """Measure and print; return 1 where what is asked does not hold."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--rounds", type=int, default=5)
    table = measured(list(PEERS), reader.parse_args().rounds)
    print_table(table)
    return int(not table.verdicts() or not all(verdict.holds for verdict in table.verdicts()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    elif sys.argv[1:2] and sys.argv[1] in PEERS:
        work(sys.argv[1], sys.argv[2])
    else:
        sys.exit(interruptible(main))
