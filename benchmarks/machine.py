"""What this process and this machine are: memory, descriptors, versions. What a system cannot tell is 0 or "unknown"."""

import contextlib
import importlib.metadata
import os
import platform
import re
import ssl
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import LITELLM_FOLDER

PACKAGES = ("jazz_llm", "openai", "litellm", "httpx", "httpx2", "aiohttp", "pyreqwest", "orjson", "h2", "matplotlib")
STATUS = Path("/proc/self/status")
KILOBYTE, MEGABYTE = 1024, 2**20


def memory() -> int:
    """Return the bytes of memory that this process holds; where that cannot be known, the most it ever held."""
    return _field("VmRSS") or _most_ever()


def most_memory() -> int:
    """Return the most bytes it held since `forget_most_memory`, or ever."""
    return _field("VmHWM") or _most_ever()


def forget_most_memory() -> None:
    """Let `most_memory` begin again (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _field(name: str) -> int:
    """Return a field of Linux's own account of this process, in bytes, or 0."""
    if not STATUS.exists():
        return 0
    found = re.search(rf"{name}:\s*(\d+) kB", STATUS.read_text(encoding="ascii"))
    return int(found[1]) * KILOBYTE if found else 0


def _most_ever() -> int:
    """Return what POSIX knows: the most ever (bytes on macOS, kilobytes elsewhere); 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    most: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * KILOBYTE


def descriptors() -> int:
    """Return how many descriptors are open, or 0 where it is not known."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder)) - 1  # the one that lists them
    return 0


def raise_file_limit() -> None:
    """Allow as many open sockets as the system lets us: a thousand HTTP/1.1 streams are a thousand connections."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- For the report ---


def description() -> dict[str, str]:
    """Return what figures depend on."""
    return {
        "Machine": f"{_processor()}, {os.cpu_count()} cores, {_total_memory()}",
        "System": platform.platform(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}, {ssl.OPENSSL_VERSION}",
        "Packages": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "Commit": _commit(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what is measured, of those that are installed here, and of what lies in litellm's folder."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    apart = {item.name: item.version for item in importlib.metadata.distributions(path=[str(LITELLM_FOLDER)])}
    return found | ({"litellm": f"{apart['litellm']} (with openai {apart['openai']})"} if "litellm" in apart else {})


def _processor() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            return found[1]
    return platform.processor() or platform.machine() or "unknown"


def _total_memory() -> str:
    """Return how much memory there is."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return "unknown memory"


def _commit() -> str:
    """Return the commit that is measured, and whether files differ from it."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"
