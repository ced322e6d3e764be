.PHONY: install style types tests bench soak fuzz

install:
	pip install -e ".[test,bench]"

style:
	ruff check .
	ruff format --check jazz_llm benchmarks

types:
	mypy

tests:
	pytest

bench:
	python -m benchmarks.prepare
	python -m benchmarks.report

soak:
	python -m benchmarks.soak --seconds 120

fuzz:
	python -m tests.fuzz.fuzz_http1 60
	python -m tests.fuzz.fuzz_http2 60
	python -m tests.fuzz.fuzz_decoder 60
