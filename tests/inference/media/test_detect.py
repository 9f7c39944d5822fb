"""Boxes of OpenCV's YuNet; a stand-in replaces its network, which is not in the repository."""

from pathlib import Path

import numpy as np
import pytest

from heatmap.inference.media import Detector

STRIDES = 8, 16, 32
CELL = 20 * 80 + 30  # row 20, column 30 of the finest grid


def write_yunet_that_sees_one_face(path: Path) -> None:
    """A network with YuNet's input and outputs that sees one face of 80 x 96 px in any image."""
    onnx = pytest.importorskip("onnx", reason="pip install '.[export]'")
    constant, node = onnx.numpy_helper.from_array, onnx.helper.make_node
    number = onnx.TensorProto.FLOAT
    values, outputs = [constant(np.zeros((), np.float32), "zero")], []
    nodes = [node("ReduceMean", ["input"], ["mean"], keepdims=0)]
    nodes.append(node("Mul", ["mean", "zero"], ["nothing"]))  # the input must be read
    seen = {"cls": [1], "obj": [1], "bbox": [0.5, 0.25, np.log(10), np.log(12)], "kps": [0] * 10}
    for name, numbers in seen.items():
        for stride in STRIDES:
            grid = np.zeros((1, (640 // stride) ** 2, len(numbers)), np.float32)
            if stride == 8:
                grid[0, CELL] = numbers
            out = f"{name}_{stride}"
            values.append(constant(grid, f"{out}_value"))
            nodes.append(node("Add", [f"{out}_value", "nothing"], [out]))
            outputs.append(onnx.helper.make_tensor_value_info(out, number, grid.shape))
    image = onnx.helper.make_tensor_value_info("input", number, [1, 3, 640, 640])
    graph = onnx.helper.make_graph(nodes, "yunet", [image], outputs, values)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)]), path)


@pytest.mark.parametrize(("hw", "shrink"), [((960, 1280), 0.5), ((90, 300), 1), ((1280, 500), 0.5)])
def test_boxes_are_in_image_pixels(tmp_path: Path, hw: tuple[int, int], shrink: float) -> None:
    write_yunet_that_sees_one_face(tmp_path / "yunet.onnx")
    boxes = Detector(tmp_path / "yunet.onnx")(np.full((*hw, 3), 100, np.uint8))
    middle, size = 8 * np.array([30.5, 20.25]), np.array([80, 96])
    expected = np.concatenate([middle - size / 2, middle + size / 2]) / shrink - 0.5
    np.testing.assert_allclose(boxes, expected[None], atol=0.01)
