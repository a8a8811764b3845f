#!/usr/bin/env bash
# Make the virtual environment: pinned packages, this package editable.
set -euo pipefail
. scripts/torch_cpu.sh
PYTHON=${PYTHON:-python3.11} EXTRA=${EXTRA:-cpu} VENV=${VENV:-.venv}

case "$EXTRA" in cpu|gpu) ;; *) echo "setup: EXTRA=$EXTRA is neither cpu nor gpu" >&2; exit 2;; esac
command -v "$PYTHON" >/dev/null || PYTHON=python3
"$PYTHON" -c 'import sys; v=sys.version_info[:2]; sys.exit(not (3,11)<=v<=(3,13))' || {
  echo "setup: $("$PYTHON" --version) does not serve: agentcloud needs Python 3.11 to 3.13 (set PYTHON=...)" >&2; exit 2; }
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install -q --disable-pip-version-check "$(grep '^uv==' constraints.txt)"

# The two builds of vLLM pin different versions of what they share.
constraints=constraints.txt
[ "$EXTRA" = gpu ] && constraints=constraints-gpu.txt
args=(--python "$VENV/bin/python" -c "$constraints")
if [ "$EXTRA" = cpu ]; then torch_cpu "$VENV/bin/python"; fi
"$VENV/bin/uv" pip install -q "${args[@]}" -e ".[$EXTRA,dev]"
