"""Measurements, each a module: `python -m bench.NAME` writes `bench/out/NAME.json`."""
