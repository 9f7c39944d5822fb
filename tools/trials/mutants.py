"""Damages files as disks, editors, programs and people do."""

import copy
import io
import json
import random
import re
import zlib
from typing import Any

# Replaces a word or a value.
JUNK = [
    b"", b" ", b"\0", b"\xff", b"\xa0", b'"', b",", b"\t", b"\n", b"null", b"true", b"-1", b"0",
    b"9" * 30, b"9" * 400, b"1e300", b"1e400", b"-0", b"0.5", b"1_0", b"0x1F", b"1,5", b"+7", b".5",
    b"7.", b"inf", b"NaN", "٣".encode(), "é".encode("latin-1"), b'""', b'"\\u0000"', b'"\\ud800"',
    b'"' + b"x" * 500 + b'"', b"x" * 300, b"../x.png", b"/x.png", b"[]", b"{}", b"[[]]",
    b'{"a": 1}', b"[" * 5000, b"-7 -7", b"1e-320",
]  # fmt: skip
_TOKEN = re.compile(rb'"[^"]*"|[\w.+-]+|[^\w\s]|\s')
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 4.0, 1e300, 10**400, float("nan"), float("inf"), "", "x", "1",
    "auto", "none", "\0", "x" * 500, [], {}, [0], [[]], {"type": "UNet"}, [1, 2, 3, 4], ["a.png"],
]  # fmt: skip


def mutant(data: bytes, generator: random.Random) -> bytes:
    """Returns the data with one to three mutations that suit its kind."""
    for _ in range(generator.choice([1, 1, 2, 3])):
        kinds = [_bytes, _span]
        if data.startswith(b"\x89PNG"):
            kinds += [_chunks] * 2
        elif data.startswith(b"PK"):
            kinds += [_checkpoint] * 2
        elif _is_text(data):
            kinds = [_token, _token, _token, _line, _line, _encoding, _bytes, _span]
            if data[:1] == b"{":
                kinds += [_json] * 5
        data = generator.choice(kinds)(data, generator)
    return data


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _two(length: int, generator: random.Random) -> tuple[int, int]:
    first, last = sorted((generator.randint(0, length), generator.randint(0, length)))
    return first, last


def _bytes(data: bytes, generator: random.Random) -> bytes:
    """Flips bits, or overwrites up to four bytes."""
    damaged = bytearray(data or b"\0")
    for _ in range(generator.choice([1, 1, 4, 20])):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    if generator.random() < 0.3:
        at = generator.randrange(len(damaged))
        damaged[at : at + 4] = generator.choice(
            [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]
        )
    return bytes(damaged)


def _span(data: bytes, generator: random.Random) -> bytes:
    """Cuts the end off, or removes, repeats, clears or moves a span."""
    first, last = _two(len(data), generator)
    if generator.random() < 0.5:
        last = min(last, first + generator.choice([1, 8, 64, 1024]))
    span = data[first:last]
    return generator.choice([
        data[:last], data[:first] + data[last:], data[:last] + span + data[last:],
        data[:first] + bytes(len(span)) + data[last:], span + data[:first] + data[last:],
    ])  # fmt: skip


def _token(data: bytes, generator: random.Random) -> bytes:
    """Replaces a word by junk or by another word."""
    spans = [match.span() for match in _TOKEN.finditer(data)] or [(0, 0)]
    start, end = generator.choice(spans)
    other = slice(*generator.choice(spans))
    return data[:start] + generator.choice([*JUNK, data[other], data[other]]) + data[end:]


def _line(data: bytes, generator: random.Random) -> bytes:
    """Removes, repeats, swaps, empties or joins lines."""
    lines = data.split(b"\n")
    first, other = generator.randrange(len(lines)), generator.randrange(len(lines))
    kind = generator.randrange(5)
    if kind == 0:
        del lines[first]
    elif kind == 1:
        lines.insert(other, lines[first])
    elif kind == 2:
        lines[first], lines[other] = lines[other], lines[first]
    elif kind == 3:
        lines.insert(first, generator.choice([b"", b" ", b"\t", b"#"]))
    else:
        lines[first] += lines[other]
        del lines[other]
    return b"\n".join(lines)


def _encoding(data: bytes, generator: random.Random) -> bytes:
    """Changes encoding, line ends or separators, or adds a byte order mark."""
    text = data.decode(errors="replace")
    return generator.choice([
        text.encode("utf-16"), b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"),
        data.replace(b"\n", b"\r"), data.replace(b"\t", b","), data.replace(b",", b";"),
        data.replace(b",", b"\t"), data.replace(b".", b","), data.rstrip(b"\n"), data + b"\n\n",
        data.replace(b"0", "٠".encode()), data.replace(b" ", b"\xc2\xa0"), b"",
    ])  # fmt: skip


def _json(data: bytes, generator: random.Random) -> bytes:
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return _token(data, generator)
    _change(root, generator)
    return json.dumps(root[0]).encode()


def _checkpoint(data: bytes, generator: random.Random) -> bytes:
    import torch

    try:
        root = [torch.load(io.BytesIO(data), weights_only=True)]
    except Exception:  # damaged before
        return _bytes(data, generator)
    _change(root, generator)
    file = io.BytesIO()
    torch.save(root[0], file)
    return file.getvalue()


def _change(root: list[Any], generator: random.Random) -> None:
    """Replaces, removes, renames, wraps or scales a value in nested lists and objects."""
    places: list[tuple[Any, Any]] = [(root, 0)]
    for container, key in places:
        inner = container[key]
        is_list = isinstance(inner, list)
        places += [(inner, k) for k in (range(len(inner)) if is_list else ())]
        places += [(inner, k) for k in (inner if isinstance(inner, dict) else ())]
    container, key = generator.choice(places)
    value, kind = container[key], generator.randrange(8)
    if kind == 0 and container is not root:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}s"] = container.pop(key)
    elif kind == 2:
        container[key] = [value]
    elif kind == 3 and not isinstance(value, str | list | dict | None):
        container[key] = generator.choice([-1 * value, value * 1_000_000, str(value)])
    elif kind == 4:
        other, place = generator.choice(places)
        container[key] = copy.deepcopy(other[place])
    else:
        container[key] = generator.choice(_VALUES)


def _chunks(data: bytes, generator: random.Random) -> bytes:
    """Damages, removes, repeats or swaps chunks of a PNG, with right checksums."""
    at, chunks = 8, list[bytes]()
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : end])
        at = end + 4
    if not chunks:
        return _bytes(data, generator)
    first, other = generator.randrange(len(chunks)), generator.randrange(len(chunks))
    kind = generator.randrange(4)
    if kind == 0:
        del chunks[first]
    elif kind == 1:
        chunks.insert(other, chunks[first])
    elif kind == 2:
        chunks[first], chunks[other] = chunks[other], chunks[first]
    else:
        chunks[first] = chunks[first][:4] + _bytes(chunks[first][4:], generator)
    return data[:8] + b"".join(
        (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        for chunk in chunks
        if len(chunk) >= 4
    )
