#!/usr/bin/env bash
# Runs formatter, linter, type checker and all tests. Arguments go to pytest: tools/test.sh -k codec
set -eu
source "$(dirname "$0")/setup.sh"

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
exec "$python" -m pytest -n 2 --dist loadfile "$@"
