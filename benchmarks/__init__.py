"""Measure what the client costs, beside its peers and beside code with no features, and what it holds under load.

python -m benchmarks.prepare            install litellm into a folder of its own (once; without it, it is left out)
python -m benchmarks.report             everything, into report.md and plots/ (--quick: does it all work?)
python -m benchmarks.bench_stream       one set of questions; so bench_call, bench_first_token, bench_import, bench_load
python -m benchmarks.bench_gateway      the gateway, beside a bare websockets echo
python -m benchmarks.soak               minutes of calls with faults: memory and descriptors have to stay flat
"""
