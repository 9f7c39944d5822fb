"""What a run ran on, for results that can be traced."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch


def chosen_device(name: str) -> torch.device:
    """The device that `train.device` asks for; auto is the GPU where there is one.

    Raises:
        ValueError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("cuda is asked for, but torch sees no GPU; ask for cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def describe(device: torch.device) -> dict[str, Any]:
    """Date, commit of this program, hardware and versions, JSON-able.

    commit: of the checkout that this package lies in, with "+" where it had changes; None outside
    of one.
    """
    processor = _processor()
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "device": device.type,
        "processor": processor,
        "cpu_cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still get on the device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = []
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        kibibytes = re.search(r"^MemAvailable:\s+(\d+)", meminfo.read_text(), re.MULTILINE)
        free += [1024 * int(kibibytes[1])] if kibibytes else []
    if (group / "memory.max").exists():  # a container's own limit
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        free += [int(limit) - used] if limit != "max" else []
    return min(free, default=None)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command, here = ["git", *arguments], Path(__file__).parent
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = "+" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "--short=10", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that memory ran out, on the CPU or on a GPU."""
    texts = "allocate memory", "out of memory"
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)
