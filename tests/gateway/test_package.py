"""What the package has to hold beside its modules."""

from __future__ import annotations

from pathlib import Path

import pytest

dist = pytest.importorskip("setuptools.dist", reason='setuptools is not installed: pip install ".[test]"')

ROOT = Path(__file__).parent.parent.parent


def test_the_page_and_the_client_are_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = dist.Distribution()
    distribution.parse_config_files()
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {name for package, _, _, names in build.data_files for name in names if package == "jazz_llm.gateway"}
    assert "page/client.js" in packed
    assert packed == {f"page/{file.name}" for file in (ROOT / "jazz_llm/gateway/page").iterdir()}
