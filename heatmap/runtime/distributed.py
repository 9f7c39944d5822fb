"""Communication between training processes started by torchrun; no-ops in a single process.

Every process must call the collective functions: `from_first`, `gather`, `joined`, `must_agree`,
`mean` and `same_everywhere`.
"""

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from torch import distributed

from heatmap.errors import UserError

T = TypeVar("T")


def start(device: torch.device) -> torch.device:
    """Joins the process group if torchrun started this process, and returns its device.

    GPU tensors use NCCL, everything else gloo.

    Raises:
        UserError: this host has fewer GPUs than processes.
    """
    if "RANK" not in os.environ:
        return device
    if device.type == "cuda":
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(
                f"this host has {gpus} GPUs for {os.environ['LOCAL_WORLD_SIZE']} processes; "
                f"run torchrun with --nproc-per-node {gpus}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend)
    return device


def stop() -> None:
    """Leaves the process group. A process that fails just exits instead, without waiting."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_first_failure() -> bool:
    """Whether this process is the first of torchrun's processes to fail; call once, on failure.

    Asks torchrun's store, which needs no other process. Without a store, every process counts
    as first.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(host, port, timeout=timedelta(seconds=10))
        return store.add(f"heatmap/failures/{attempt}", 1) == 1
    except (KeyError, distributed.DistError):
        return True


def rank() -> int:
    """Returns this process's number in the process group, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """Returns the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def from_first(value: T) -> T:
    """Returns process 0's value."""
    if world() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def gather(value: T) -> list[T]:
    """Returns the values of all processes, by rank."""
    if world() == 1:
        return [value]
    boxes: list[T | None] = [None] * world()
    distributed.all_gather_object(boxes, value)
    return boxes  # type: ignore[return-value]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """Concatenates the parts of all processes on process 0; returns None on the others.

    Takes one part (n, ...) from each process in turn, as `samples.batches_in_order` deals them.
    No process has more parts than process 0. Parts are received in place to save memory.
    """
    if world() == 1:
        return np.concatenate(parts)
    lengths = gather([len(part) for part in parts])
    if rank() > 0:
        for part in parts:
            distributed.send(torch.from_numpy(np.ascontiguousarray(part)), 0)
        return None
    whole = np.empty((sum(map(sum, lengths)), *parts[0].shape[1:]), parts[0].dtype)
    end = 0
    for turn, process in product(range(len(parts)), range(world())):
        if turn == len(lengths[process]):  # no part left for the last turn
            continue
        begin, end = end, end + lengths[process][turn]
        if process == 0:
            whole[begin:end] = parts[turn]
        else:
            distributed.recv(torch.from_numpy(whole[begin:end]), process)
    return whole


def must_agree(values: Mapping[str, object]) -> None:
    """Checks that the `repr` of each value is the same in all processes.

    Raises:
        UserError: a value differs; raised in every process, with its name and the two hosts.
    """
    texts = {name: repr(value) for name, value in values.items()}
    (first_host, expected), *others = gather((socket.gethostname(), texts))
    for process, (host, actual) in enumerate(others, start=1):
        for name, text in actual.items():
            if expected.get(name) != text:
                raise UserError(
                    f"{name}: differs between process {process} on {host} and process 0 on "
                    f"{first_host}; all hosts must see the same files under the same paths"
                )


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """Averages the tensor over the processes, in place."""
    if world() > 1:
        distributed.all_reduce(tensor)
        tensor /= world()
    return tensor


def same_everywhere(tensors: Iterable[torch.Tensor]) -> None:
    """Copies the tensors of process 0 to all processes, in place."""
    if world() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)
