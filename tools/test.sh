#!/usr/bin/env bash
# Runs formatter, linter, type checker and all tests. Arguments go to pytest: tools/test.sh -k codec
set -eu
source "$(dirname "$0")/setup.sh" dev

"$python" -m ruff format --check .
"$python" -m ruff check .
# beside the tests, which often wait
"$python" -m mypy &
mypy=$!
status=0
"$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || status=$?
wait "$mypy" || fail "mypy found errors (see above)"
exit "$status"
