"""The machine: devices, cores, memory, and what a run ran on. Imports torch only when it must."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatmap.errors import UserError

if TYPE_CHECKING:
    import torch


def usable_cores() -> int:
    """CPU cores that this process may use, which a container or a batch system may have limited."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chosen_device(name: str) -> "torch.device":
    """The device that `train.device` asks for; auto is the GPU where there is one.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("cuda is asked for, but torch sees no GPU; ask for cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def describe(device: "torch.device") -> dict[str, Any]:
    """Date, commit (with "+" where the checkout had changes), hardware and versions, JSON-able."""
    import torch

    on_gpu = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "cpu_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_memory(device: "torch.device") -> int:
    """The most bytes held so far: by torch on a GPU, by this process in the CPU's memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins with that of the parent process
        (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return 1024 * int(kibibytes)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""  # Linux
    found = re.search(r"^model name[^:\n]*:(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


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


def first_line(error: Exception) -> str:
    """What the error says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that memory ran out, on the CPU or on a GPU."""
    texts = "allocate memory", "out of memory"
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)
