#!/usr/bin/env bash
# Builds sdist and wheel, installs the wheel into a new environment, and trains, predicts and
# exports there. All dependencies come from the index; with --offline, from this environment.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH

build=(--no-deps --wheel-dir "$folder")
install=()
if [ "${1:-}" = --offline ]; then
    build+=(--no-index --no-build-isolation)
    install+=(--no-index --no-deps)
fi

cd "$root"
"$python" -c 'import setuptools; setuptools.setup()' -q egg_info --egg-base "$folder" \
    sdist --dist-dir "$folder"
"$python" -m pip wheel -q "${build[@]}" "$folder"/*.tar.gz
"$python" -m venv --without-pip "$folder/venv"
wheel=$(ls "$folder"/*.whl)
"$python" -m pip --python "$folder/venv/bin/python" install -q "${install[@]}" "$wheel[export]"
if [ "${1:-}" = --offline ]; then
    # the files of a folder that a .pth names are found, but its own .pth files are not read: so
    # the libraries are here, and a link to the checkout is not
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        > "$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
fi

mkdir "$folder/work"
cd "$folder/work"
PATH=$folder/venv/bin:$PATH
python -c 'import heatmap, heatmap_experiments as e, sys; print(heatmap.__file__, e.__file__)' > imported
[ "$(grep -o "$folder/venv" imported | wc -l)" = 2 ] || { echo "error: imported $(cat imported)" >&2; exit 1; }

cat > mine.py << 'PYTHON'
from dataclasses import replace
from heatmap.config import Crop, Data, Train, UNet
from heatmap_experiments import unet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="mine",
    data=Data(root="faces", workers=0),
    crop=Crop(height=32, width=32),
    model=UNet(encoder="tu-test_resnet", weights="none", width=6),
    train=Train(batch=2, max_steps=2, device="cpu", compile="off"),
)
PYTHON
heatmap --help > help.txt
heatmap train unet --help > recipe.txt
heatmap data make faces --count 8 --test-count 1 --workers 1
heatmap train mine.py --out run --wandb.mode off
heatmap predict run faces/test/images --out drawn --device cpu
python -m heatmap export run model.onnx
echo "installed and run: $(basename "$wheel")"
