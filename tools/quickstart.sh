#!/usr/bin/env bash
# Draws a synthetic contest, trains a small U-Net on it, and scores it.
set -eu
source "$(dirname "$0")/setup.sh"

exec "$python" -m heatmap quickstart "$@"
