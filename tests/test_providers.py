from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from jazz_llm.providers import BY_NAME, PROVIDERS, provider_of_host


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(PROVIDERS) == 43


@pytest.mark.parametrize("row", PROVIDERS, ids=lambda row: row.name)
def test_every_public_host_finds_its_row(row: object) -> None:
    for host in (urlsplit(row.base_url).hostname, *row.hosts):
        filled = host.replace("{", "").replace("}", "")
        if not filled.startswith(("localhost", "127.")):
            assert provider_of_host(filled) is row


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "example.com", "api.groq.com.evil.com", "xapi.groq.com", ".openai.azure.com"])
def test_other_hosts_have_none(host: str) -> None:
    assert provider_of_host(host) is None
