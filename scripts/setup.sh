#!/usr/bin/env bash
# Make the virtual environment: pinned packages, this package editable.
# The CPU build of torch comes from the folder or page that PIP_FIND_LINKS names where one is set
# and holds it, else from PyTorch's own CPU index, which uv knows by name.
set -euo pipefail
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
if [ "$EXTRA" = cpu ]; then
  args+=(--override overrides.txt)
  export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
  UV_FIND_LINKS=${UV_FIND_LINKS// /,}
  probe=$(mktemp -d) && trap 'rm -rf "$probe"' EXIT
  if [ -n "$UV_FIND_LINKS" ] && "$VENV/bin/python" -m pip download -q --no-deps --no-index \
       --find-links "${UV_FIND_LINKS%%,*}" -d "$probe" 'torch==2.13.0+cpu' >/dev/null 2>&1; then
    args+=('torch==2.13.0+cpu')
  else
    unset UV_FIND_LINKS
    args+=(--torch-backend cpu)
  fi
fi
"$VENV/bin/uv" pip install -q "${args[@]}" -e ".[$EXTRA,dev]"
