"""Images that look alike are grouped, and others are not."""

import cv2
import numpy as np

from heatmap.curation.duplicates import near_groups, perceptual_hash


def images(count: int) -> list[np.ndarray]:
    """Smooth images of many colours, 240 high and 300 wide."""
    generator = np.random.default_rng(3)
    coarse = generator.uniform(40, 215, (count, 9, 11, 3))
    return [
        cv2.resize(c, (300, 240), interpolation=cv2.INTER_CUBIC).astype(np.uint8) for c in coarse
    ]


def bits_apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_a_smaller_brighter_compressed_copy_has_a_similar_hash() -> None:
    for image in images(20):
        small = cv2.resize(image, (170, 133), interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(
            ".jpg", cv2.add(small, (12, 12, 12, 0)), [cv2.IMWRITE_JPEG_QUALITY, 60]
        )
        copy = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert bits_apart(perceptual_hash(image), perceptual_hash(copy)) <= 4


def test_different_images_have_different_hashes() -> None:
    hashes = [perceptual_hash(image) for image in images(30)]
    apart = [bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 10
    assert 28 < np.mean(apart) < 36


def test_groups_equal_those_of_a_comparison_of_all_pairs() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**64, 300, np.uint64)
    hashes[200:] = hashes[generator.integers(0, 60, 100)]
    for _ in range(5):  # creates chains of near hashes, 0 to 5 bits apart
        flipped = np.uint64(1) << generator.integers(0, 64, 100).astype(np.uint64)
        hashes[200:] ^= np.where(generator.random(100) < 0.6, flipped, np.uint64(0))
    for most_bits in (0, 1, 4):
        is_near = np.bitwise_count(hashes[:, None] ^ hashes) <= most_bits
        linked = is_near.copy()
        while not np.array_equal(linked, wider := linked @ is_near):
            linked = wider
        expected = linked.argmax(1)  # the lowest index that is linked
        groups = near_groups(hashes, most_bits)
        np.testing.assert_array_equal(groups, expected)
        assert len(np.unique(groups)) < 300 or most_bits == 0


def test_many_equal_hashes_form_one_group_quickly() -> None:
    assert near_groups(np.full(200_000, 77, np.uint64)).tolist() == [0] * 200_000
    assert near_groups(np.array([], np.uint64)).tolist() == []
