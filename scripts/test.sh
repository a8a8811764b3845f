#!/usr/bin/env bash
# Every test. Those with the shared Ray and engines wait most of the time, for processes to start:
# what needs neither (tests/conftest.py) runs beside them, behind them in the queue for the processor.
set -uo pipefail
pytest=("${VENV:-.venv}/bin/python" -m pytest "$@")
log=$(mktemp)
trap 'rm -f "$log"; kill $(jobs -p) 2>/dev/null' EXIT

nice -n 5 "${pytest[@]}" -m beside >"$log" 2>&1 &
rest=0
"${pytest[@]}" -m "not beside" || rest=$?
beside=0
wait %1 || beside=$?
cat "$log"
exit $((rest ? rest : beside))
