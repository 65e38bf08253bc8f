#!/usr/bin/env bash
# Fuzz calls, valid and not (tests/test_fuzz.py): 4,000 examples, the same each time; with FULL=1
# fifty times as many, different each time.
set -euo pipefail
profile=ci
[ "${FULL:-0}" != 1 ] || profile=soak
python -m pytest -q tests/test_fuzz.py --hypothesis-profile="$profile" \
    --hypothesis-show-statistics | sed -n '/%\|passing\|^E \|^FAILED\|passed/s/^/fuzz: /p'
