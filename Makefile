.PHONY: install style types tests bench

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
	python -m benchmarks.bench_import
	python -m benchmarks.bench_call
	python -m benchmarks.bench_stream
