"""Install litellm, with the openai 2 that it needs, into a folder of its own, as openai 3 is what it is compared with."""

import subprocess
import sys

from benchmarks.peers import LITELLM_FOLDER


def main() -> int:
    """Install it, unless it is there."""
    if LITELLM_FOLDER.exists():
        return 0
    print(f"installing litellm into {LITELLM_FOLDER} (300 MB)", flush=True)
    begun = LITELLM_FOLDER.with_name(
        LITELLM_FOLDER.name + ".begun"
    )  # so that half an installation is never taken for a whole one
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(begun), "litellm"]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        begun.rename(LITELLM_FOLDER)
    return code


if __name__ == "__main__":
    sys.exit(main())
