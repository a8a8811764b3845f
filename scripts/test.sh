#!/usr/bin/env bash
# Every test. Those with the shared Ray and engines wait most of the time, for processes to start:
# what needs neither (tests/conftest.py) runs beside them, behind them in the queue for the processor.
set -uo pipefail
pytest=("${VENV:-.venv}/bin/python" -m pytest "$@")
# CI has 20 minutes: a few tests that start engines of their own run with ALL=1 alone.
some="and not slow"
[ -n "${ALL:-}" ] && some=""
log=$(mktemp)
trap 'rm -f "$log"; kill $(jobs -p) 2>/dev/null' EXIT

nice -n 5 "${pytest[@]}" -m "beside $some" >"$log" 2>&1 &
rest=0
"${pytest[@]}" -m "not beside $some" || rest=$?
beside=0
wait %1 || beside=$?
cat "$log"
exit $((rest ? rest : beside))
