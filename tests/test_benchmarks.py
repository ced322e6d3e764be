"""The benchmarks run: a tiny question for each peer that is installed, the load's checks, a second of soak, the report."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import bench_gateway, bench_load, bench_structured, harness, report, soak
from benchmarks.harness import Place, Question, Table

SMALL = bench_load.Size(counts=(2,), tokens=4, loads=((3, "steady-50-3", "3 tokens"),), waves=3, threads=2, calls=20, leaves=3)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with harness.prepared() as place:
        yield place


@pytest.fixture(autouse=True)
def no_notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    notes: list[str] = []
    monkeypatch.setattr(harness, "NOTES", notes)
    return notes


@pytest.mark.parametrize("peer", ["jazz_llm", "floor", "httpx", "aiohttp"])
def test_a_tiny_question(place: Place, peer: str, no_notes: list[str]) -> None:
    if importlib.util.find_spec(peer) is None and peer != "floor":
        pytest.skip(f'{peer} is not installed: pip install ".[bench]"')
    with harness.lineup([peer], place) as everyone:
        for method in everyone.methods[peer]:
            for wire in ("http1", "h2c", "tls"):
                unit = "us/chunk" if method.endswith("stream") else "us/call"
                table = everyone.answer(Question("tiny", unit, method, "burst-50", times=4, at_once=2, wire=wire), rounds=1)
                assert table.costs[peer][0] > 0
        first = Question("first", "us", "astream", "steady-1000-2", times=3, action="first_token")
        assert everyone.answer(first, rounds=1).costs[peer]
    assert not no_notes


def test_what_is_asked_is_held_against_what_was_got() -> None:
    question = Question("q", "us", "stream", "m", 1, limits=(("openai", 1 / 35), ("aiohttp", 1.0)), most=2.0)
    verdicts = Table(question, {"jazz_llm": [1.0, 9.0, 2.0], "openai": [71.0], "aiohttp": [1.9]}).verdicts()
    assert [(verdict.got, verdict.holds) for verdict in verdicts] == [("1/35.5", True), ("1.05", False), ("2.0", True)]


def test_a_structured_answer_is_read(no_notes: list[str]) -> None:
    names = [name for name in bench_structured.PEERS if importlib.util.find_spec(name) is not None]
    table = bench_structured.measured(names, rounds=1, times=20)
    assert [len(costs) for costs in table.costs.values()] == [1] * len(names)
    assert 10_000 <= len(bench_structured.answer().encode()) <= 12_000
    assert not no_notes


def test_the_gateway_is_measured(no_notes: list[str]) -> None:
    pytest.importorskip("websockets", reason='websockets is not installed: pip install ".[gateway]"')
    with bench_gateway.staged(bench_gateway.MIDDLES) as stage:
        table, turns = bench_gateway.measured(stage, clients=3, count=10, rounds=1)
    assert set(table.costs) == {"jazz_llm", "relay", "echo"}
    for (turn,) in turns.values():
        assert turn.wrong == []
        assert 0 < turn.median <= turn.p99
    assert len(list(bench_gateway.checks(turns, turns, 3, 10))) == 2
    assert not no_notes


def test_the_checks_of_the_load_run(place: Place) -> None:
    assert [line.errors for line in bench_load.all_lines(place, SMALL, ["jazz_llm"])] == [0, 0, 0]
    checks = [*bench_load.many_streams(place, SMALL, "h2c"), *bench_load.many_threads(place, SMALL, "http1")]
    assert [check.figures for check in checks if not check.holds] == []


def test_a_second_of_soak(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = soak.soak(place, seconds=1.0)
    assert outcome.surprises == []
    assert outcome.calls >= soak.BATCH
    assert capsys.readouterr().out


def test_the_soak_complains_about_what_grows() -> None:
    flat = soak.Outcome(kinds=Counter(whole=100_000))
    flat.samples = [soak.Sample(calls, 50 * 2**20 + calls % 3000, 30 + calls % 5) for calls in range(0, 100_001, 1000)]
    leaking = soak.Outcome(kinds=flat.kinds)
    leaking.samples = [soak.Sample(calls, 50 * 2**20 + calls * 200, 30 + calls // 1000) for calls in range(0, 100_001, 1000)]
    assert flat.complaints() == []
    assert len(leaking.complaints()) == 2
    assert leaking.slope() == pytest.approx(200 * 10_000 / 2**20)


def test_the_report_is_written(tmp_path: Path) -> None:
    question = Question("astream, burst: of 5", "us/chunk", "astream", "burst-5", 1, limits=(("openai", 0.5),))
    results = report.Results("python -m benchmarks.report")
    results.tables["bench_stream"] = [Table(question, {"jazz_llm": [1.0], "openai": [70.0]})]
    results.beginnings["jazz_llm"] = [1.0, 2.0, 3.0, 4.0]
    results.lines = [bench_load.Line("http1", 10, "jazz_llm", 1.0, 0.1, 0.2, 10, 10, 0)]
    results.checks = [bench_load.Check("load", "http1", "0 errors", holds=False)]
    text = report.written(results, tmp_path).read_text()
    assert "at most 0.50 of openai: 1/70 | yes |" in text
    assert "0 of 1 hold" in text
