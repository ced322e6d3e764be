"""``python -m jazz_llm``."""

from .cli import main

main()
