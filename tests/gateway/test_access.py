"""Who may come in."""

from __future__ import annotations

import pytest

from jazz_llm.config import Secret
from jazz_llm.errors import LLMConfigurationError
from jazz_llm.gateway.access import check_access, is_loopback

LOCAL = check_access("127.0.0.1", None, ["https://example.org/", "null"])
OPEN = check_access("0.0.0.0", Secret("tok"), ["http://box.lan:7562"])


@pytest.mark.parametrize("host", ["127.0.0.1:7562", "localhost:7562", "localhost", "[::1]:7562", "LOCALHOST:1", "a.localhost:7562"])
def test_this_machine_by_its_own_names(host: str) -> None:
    assert not LOCAL.problem(host, None)
    assert not LOCAL.problem(host, f"http://{host}")


@pytest.mark.parametrize("host", [None, "", "evil.example:7562", "127.0.0.1.evil.example", "localhost.evil.example:7562", "10.0.0.1:7562", "127.0.0.1:7562, x", "127.0.0.1 ", "a@127.0.0.1", "127.0.0.1:x", "[::1"])
def test_a_name_that_was_pointed_here(host: str | None) -> None:
    assert LOCAL.problem(host, None)
    assert LOCAL.problem(host, f"http://{host}")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "https://127.0.0.1:7562", "http://127.0.0.1:80", "http://localhost:7562", "http://127.0.0.1:7562.evil.example", "", "file://", "https://example.org.evil", "http://127.0.0.1:7562,http://evil.example"],
)
def test_a_page_elsewhere(origin: str) -> None:
    assert "--allow-origin" in LOCAL.problem("127.0.0.1:7562", origin)


def test_pages_that_were_let_in() -> None:
    assert not LOCAL.problem("127.0.0.1:7562", "https://example.org")
    assert not LOCAL.problem("127.0.0.1:7562", "https://EXAMPLE.org")
    assert not LOCAL.problem("127.0.0.1:7562", "null")
    assert check_access("127.0.0.1", None, []).problem("127.0.0.1:7562", "null")


def test_other_machines_by_address_or_a_name_that_was_given() -> None:
    for host in ("10.0.0.7:7562", "[fd00::7]:7562", "localhost:7562", "box.lan:7562"):
        assert not OPEN.problem(host, f"http://{host}")
    assert OPEN.problem("evil.example:7562", "http://evil.example:7562")
    assert not OPEN.problem("gateway:7562", None)  # no browser


def test_the_token() -> None:
    assert LOCAL.admits(None, [])
    assert OPEN.admits("Bearer tok", [])
    assert OPEN.admits("bearer tok", [])
    assert OPEN.admits("Bearer wrong", ["other", "bearer.tok"])
    for authorization, offers in (
        (None, []), ("tok", []), ("Basic tok", []), ("Bearer", []), ("Bearer tokk", []), ("Bearer \udcff", []), (None, ["tok"]), (None, ["bearer."]), (None, ["bearer.to"]),
    ):
        assert not OPEN.admits(authorization, offers)
    assert "tok" not in repr(OPEN).replace("token", "")


@pytest.mark.parametrize("token", ["", "a b", "é", "x\n", "x" * 513, "a/b", 7])
def test_a_token_that_no_header_can_carry(token: object) -> None:
    with pytest.raises(LLMConfigurationError, match=r"^token must be"):
        check_access("127.0.0.1", Secret(token), [])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "::ffff:10.0.0.1"])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(LLMConfigurationError, match="JAZZ_LLM_GATEWAY_TOKEN"):
        check_access(host, None, [])


@pytest.mark.parametrize("origin", ["example.org", "*", "https://example.org/path", "https://a@b", ""])
def test_an_origin_that_is_none(origin: str) -> None:
    with pytest.raises(LLMConfigurationError, match="allow_origin"):
        check_access("127.0.0.1", None, [origin])


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "localhost", "x.localhost", "::ffff:127.0.0.1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "", "10.0.0.1", "localhost.org", "::ffff:10.0.0.1"]))
