#!/usr/bin/env bash
# Make an environment of their own for the systems that the benchmarks compare with: they pin
# other versions (Ray Serve LLM another vLLM) than ours. Where it is absent the benchmarks say
# `not measured`. PEERS picks what goes in; LiteLLM is all that bench/hosted.py needs.
set -euo pipefail
PYTHON=${PYTHON:-python3.11} PEERS=${PEERS:-litellm==1.110.2}
VENV=.venv-peers

command -v "$PYTHON" >/dev/null || PYTHON=python3
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install -q --disable-pip-version-check "$(grep '^uv==' constraints.txt)"
# shellcheck disable=SC2086  # several packages, split on purpose
"$VENV/bin/uv" pip install -q --python "$VENV/bin/python" $PEERS
