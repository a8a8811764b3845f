#!/usr/bin/env bash
# Debian's packages that the tests use: Prometheus, a browser, PostgreSQL, Redis. Nothing happens where they are
# there already; without root or apt it says what is missing, and the tests that need it skip.
set -euo pipefail
missing=()
command -v prometheus >/dev/null || missing+=(prometheus)
command -v chromium >/dev/null || missing+=(chromium)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
command -v redis-server >/dev/null || missing+=(redis-server)
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "apt: ${missing[*]} not installed (needs root and apt): their tests are skipped" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# Debian's Prometheus starts a service of its own: not on a machine that only tests.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null; then
  echo "apt: ${missing[*]} could not be installed: their tests are skipped" >&2
fi
