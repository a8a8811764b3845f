#!/usr/bin/env bash
# Every test, in two runs beside each other: most of the time is spent waiting, for engines and
# clusters to start. Each has a Ray and replicas of its own.
set -uo pipefail
PYTEST=("${VENV:-.venv}/bin/python" -m pytest "$@")
# What a user does with whole clusters; the rest needs the engine.
first=(tests/tasks tests/faults/test_job_death.py)
log=$(mktemp)
trap 'rm -f "$log"; kill $(jobs -p) 2>/dev/null' EXIT

"${PYTEST[@]}" "${first[@]}" >"$log" 2>&1 &
second_status=0
"${PYTEST[@]}" tests --ignore=tests/tasks --ignore=tests/faults/test_job_death.py || second_status=$?
first_status=0
wait %1 || first_status=$?
cat "$log"
exit $((first_status ? first_status : second_status))
