"""Measure what the client costs: `python -m benchmarks.bench_import`, `.bench_call`, `.bench_stream`."""
