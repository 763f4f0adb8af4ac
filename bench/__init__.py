"""Benchmarks. `python -m bench` lists the commands; `bench.cases` is the registry of what they time."""
