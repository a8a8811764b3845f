#!/usr/bin/env bash
# Every test. Those with a real Ray or engine wait most of the time, for processes to start: what
# needs neither runs beside them, behind them in the queue for the processor.
set -uo pipefail
pytest=("${VENV:-.venv}/bin/python" -m pytest "$@")
log=$(mktemp)
trap 'rm -f "$log"; kill $(jobs -p) 2>/dev/null' EXIT

nice -n 10 "${pytest[@]}" -m "not ray and not engine" >"$log" 2>&1 &
real=0
"${pytest[@]}" -m "ray or engine" || real=$?
pure=0
wait %1 || pure=$?
cat "$log"
exit $((real ? real : pure))
