"""A small landmark table for tests."""

from pathlib import Path

TABLE = (
    "file_name\tPoint_0_X\tPoint_0_Y\tPoint_1_X\tPoint_1_Y\n"
    "a.jpg\t1\t2\t-3\t4\n"
    "b.jpg\t50\t60\t70\t80\n"
    "sub/c.jpg\t9\t8\t7\t1308\n"
)


def save(folder: Path, text: str | bytes) -> Path:
    path = folder / "landmarks.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
