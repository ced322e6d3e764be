"""What the package has to hold beside its modules."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# In a process of its own: setuptools puts a distutils into this one, and complains later of what it finds there.
PACKED = """
from setuptools.dist import Distribution

distribution = Distribution()
distribution.parse_config_files()
build = distribution.get_command_obj("build_py")
build.ensure_finalized()
print(*(name for package, _, _, names in build.data_files for name in names if package == "jazz_llm.gateway"), sep="\\n")
"""


@pytest.mark.skipif(find_spec("setuptools") is None, reason='setuptools is not installed: pip install ".[test]"')
def test_the_page_and_the_client_are_in_the_package() -> None:
    done = subprocess.run([sys.executable, "-c", PACKED], cwd=ROOT, capture_output=True, text=True, check=True)
    packed = set(done.stdout.split())
    assert "page/client.js" in packed
    assert packed == {f"page/{file.name}" for file in (ROOT / "jazz_llm/gateway/page").iterdir()}
