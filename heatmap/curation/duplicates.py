"""Images that look alike, found among hundreds of thousands."""

import cv2
import networkx
import numpy as np

MOST_BITS = 4  # of 64 in which near-duplicates may differ


def perceptual_hash(image: np.ndarray) -> int:
    """64 bits that hardly change when an image is resized, compressed or made a little brighter.

    The signs, against their median, of the low frequencies of the grey 32 x 32 image (pHash).

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


def near_groups(hashes: np.ndarray, most_bits: int = MOST_BITS) -> np.ndarray:
    """(N,) int64 number of each image's group: the lowest index in it.

    Images whose hashes differ in at most `most_bits` bits are in one group, and so are those that
    others link. Such hashes are equal in one of `most_bits + 1` bands of bits, so that only those
    which share a band are compared.

    Args:
        hashes: (N,) uint64.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    ends = np.linspace(0, 64, most_bits + 2).round().astype(int)
    pairs = [np.empty((0, 2), np.int64)]
    for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        band = (values >> np.uint64(begin)) & np.uint64((1 << end - begin) - 1)
        order = np.argsort(band, kind="stable")
        band, ordered = band[order], values[order]
        place, apart = np.arange(len(values)), 1
        while len(place):  # every value with the next, then with the one after that, ...
            place = place[place + apart < len(values)]
            place = place[band[place] == band[place + apart]]
            is_near = np.bitwise_count(ordered[place] ^ ordered[place + apart]) <= most_bits
            near = place[is_near]
            pairs.append(np.stack([order[near], order[near + apart]], 1))
            apart += 1
    lowest = first.copy()
    links = networkx.Graph(np.concatenate(pairs).tolist())
    for linked in map(list, networkx.connected_components(links)):
        lowest[linked] = first[linked].min()
    return lowest[inverse]
