"""Finds images that look alike among hundreds of thousands."""

import cv2
import networkx
import numpy as np

MAX_BITS = 4  # of 64 in which the hashes of near-duplicates may differ


def perceptual_hash(image: np.ndarray) -> int:
    """Returns 64 bits that resizing, compression and small changes of brightness hardly change.

    A bit is 1 if a low frequency of the grey 32 x 32 image is above the median of all 64 (pHash).

    Args:
        image: (H, W, 3) uint8 RGB.

    Source: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions",
    https://www.phash.org/docs/pubs/thesis_zauner.pdf.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(small.astype(np.float32))[1:9, 1:9]
    bits = np.packbits(frequencies > np.median(frequencies))
    return int.from_bytes(bits.tobytes(), "big")


def near_groups(hashes: np.ndarray, max_bits: int = MAX_BITS) -> np.ndarray:
    """Groups images whose hashes differ in at most `max_bits` bits, directly or through others.

    Two such hashes agree in at least one of `max_bits + 1` bands of bits, so only hashes that share
    a band are compared.

    Args:
        hashes: (N,) uint64.

    Returns:
        (N,) int64, the lowest index in each image's group.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    bounds = np.linspace(0, 64, max_bits + 2).round().astype(int)
    pairs = [np.empty((0, 2), np.int64)]
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        band = (values >> np.uint64(begin)) & np.uint64((1 << end - begin) - 1)
        order = np.argsort(band, kind="stable")
        band, ordered = band[order], values[order]
        index, step = np.arange(len(values)), 1
        while len(index):  # compare each value with the next, then with the one after, ...
            index = index[index + step < len(values)]
            index = index[band[index] == band[index + step]]
            is_near = np.bitwise_count(ordered[index] ^ ordered[index + step]) <= max_bits
            near = index[is_near]
            pairs.append(np.stack([order[near], order[near + step]], 1))
            step += 1
    lowest = first.copy()
    graph = networkx.Graph(np.concatenate(pairs).tolist())
    for connected in map(list, networkx.connected_components(graph)):
        lowest[connected] = first[connected].min()
    return lowest[inverse]
