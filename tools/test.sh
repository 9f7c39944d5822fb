#!/usr/bin/env bash
# The whole suite with formatter, linter and types. Arguments go to pytest: bash tools/test.sh -k codec
set -eu
source "$(dirname "$0")/setup.sh"

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
exec "$python" -m pytest -n 2 --dist loadfile "$@"
