"""Processes, devices, memory, terminal and the machine's description. Imports torch late."""

import datetime
import logging
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatmap.errors import UserError

if TYPE_CHECKING:
    import torch


def is_first() -> bool:
    """Whether this is the only process, or the first that torchrun started.

    Reads the environment, because `distributed.rank` would import torch for every `--help`.
    """
    return os.environ.get("RANK", "0") == "0"


def log_to_terminal() -> None:
    """Prints the package's messages, unless the program has set up logging itself.

    Processes but the first print only errors.
    """
    logger = logging.getLogger("heatmap")
    if not logger.hasHandlers():
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO if is_first() else logging.ERROR)


def usable_cores() -> int:
    """Returns how many CPU cores this process may use; containers and batch systems limit them."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chosen_device(name: str) -> "torch.device":
    """Returns the device for `train.device`: cpu, cuda, or auto (cuda if available).

    Raises:
        UserError: cuda is not available.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda is not available: torch finds no GPU; use cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def use_deterministic_algorithms() -> None:
    """Makes every later run of the same work on a GPU give the same bits.

    Until the process ends, an operation that cannot do so raises RuntimeError.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def loader_processes(wanted: int | None = None) -> int:
    """Returns how many processes load images: `wanted`, or a number that suits the cores.

    The cores, less two for training, are shared by the training processes of this host.
    """
    if wanted is not None:
        return wanted
    suitable = min(16, max(2, usable_cores() - 2))
    return max(1, suitable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def send(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copies a CPU tensor to the device, without waiting until the copy is done."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def describe(device: "torch.device") -> dict[str, Any]:
    """Returns date, commit ("+" marks uncommitted changes), hardware and versions, for JSON."""
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
    """Returns the peak memory so far in bytes: torch's on a GPU, else this process's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss starts from the parent process's
        (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return 1024 * int(kibibytes)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""  # Linux
    match = re.search(r"^model name[^:\n]*:(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _commit() -> str | None:
    options = "--always", "--exclude=*", "--abbrev=10", "--dirty=+"
    git = ["git", "-C", str(Path(__file__).parent), "describe", *options]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def first_line(error: BaseException) -> str:
    """Returns the first line of the error's message, or the name of its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def problem_of_machine(error: Exception) -> str:
    """Returns what the machine lacks if that is why something failed, and what to do; else ""."""
    text = str(error)
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}); use a smaller batch or model"
    if "DataLoader worker" in text and "allocate shared memory" in text:
        return f"/dev/shm is too small for the processes that read images; {_FEWER_WORKERS}"
    if re.search(r"DataLoader worker .*(killed|exited)", text):
        return f"a process that reads images has ended ({first_line(error)}); {_FEWER_WORKERS}"
    if "RANK" in os.environ and re.search("gloo|NCCL|by peer", text, re.IGNORECASE):
        return f"another process of this run has ended or is out of reach ({first_line(error)})"
    return ""


_FEWER_WORKERS = (
    "use fewer of them (--data.workers), a smaller --train.batch, or a container with more shared "
    "memory (docker run --shm-size 8g)"
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether CPU or GPU memory ran out."""
    texts = "allocate memory", "out of memory"
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)
