# Sourced by the other scripts: makes .venv with heatmap and its test tools, once for each
# version of setup.cfg.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

fail() {
    echo "error: $1" >&2
    exit 1
}

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer not found; install it, or run PYTHON=/path/to/python bash $0"
}

python=$root/.venv/bin/python
stamp=$root/.venv/heatmap.stamp
if ! cmp -s setup.cfg "$stamp"; then
    if [ ! -x "$python" ]; then
        base=$(find_python) || exit 1
        "$base" -m venv .venv >/dev/null 2>&1 ||
            { rm -rf .venv; fail "$base has no working venv module; on Debian or Ubuntu run apt install python3-venv"; }
    fi
    echo "Installing into .venv: about 2.7 GB of downloads on Linux, where torch comes with CUDA; less elsewhere."
    "$python" -m pip install --disable-pip-version-check --progress-bar on -e ".[test]" ||
        fail "the installation failed (see above); run the command again to resume it"
    cp setup.cfg "$stamp"
fi
