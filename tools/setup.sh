# Sourced by the other scripts: installs heatmap into .venv, once for each version of setup.cfg.
# `source tools/setup.sh [dev]` also installs that extra. HEATMAP_CPU=1 installs torch without CUDA.

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

install_cpu_torch() {
    cpu_index=https://download.pytorch.org/whl/cpu
    # other indexes would offer torch with CUDA
    env -u PIP_EXTRA_INDEX_URL -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null \
        "$python" -m pip install --retries 1 --timeout 30 --index-url "$cpu_index" torch torchvision ||
        fail "no torch from $cpu_index (see above); try again, or without HEATMAP_CPU=1"
}

python=$root/.venv/bin/python
extra=${1:+[$1]}
if ! cmp -s setup.cfg "$root/.venv/heatmap$extra.stamp" && ! cmp -s setup.cfg "$root/.venv/heatmap[dev].stamp"; then
    if [ ! -x "$python" ]; then
        base=$(find_python) || exit 1
        "$base" -m venv .venv >/dev/null 2>&1 ||
            { rm -rf .venv; fail "$base has no working venv module; on Debian or Ubuntu run apt install python3-venv"; }
    fi
    if [ -n "${HEATMAP_CPU:-}" ]; then
        install_cpu_torch
    else
        echo "Installing into .venv: about 2.7 GB of downloads on Linux, where torch comes with CUDA; less with HEATMAP_CPU=1."
    fi
    "$python" -m pip install --disable-pip-version-check --progress-bar on -e ".$extra" ||
        fail "the installation failed (see above); run the command again to resume it"
    cp setup.cfg "$root/.venv/heatmap$extra.stamp"
fi
