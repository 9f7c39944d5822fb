"""What training processes started by `torchrun` say to each other; the identity in a single one."""

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
    """Joins the processes that torchrun started, if it did; returns this process's device.

    What lies on GPUs goes over NCCL, everything else over gloo.

    Raises:
        UserError: this host has fewer GPUs than processes.
    """
    if "RANK" not in os.environ:
        return device
    if device.type == "cuda":
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            processes = f"{os.environ['LOCAL_WORLD_SIZE']} processes on this host"
            advice = f"start it with torchrun --nproc-per-node {gpus}"
            raise UserError(f"there are {gpus} GPUs for {processes}; {advice}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend)
    return device


def stop() -> None:
    """Leaves the other processes; one that fails does not wait for them and just ends."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def fails_first() -> bool:
    """Whether this process, which fails, is the first of torchrun's that does; asked once.

    torchrun's own store is asked, which needs no other process. Without it, every process is.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(host, port, timeout=timedelta(seconds=10))
        return store.add(f"heatmap/failures/{attempt}", 1) == 1
    except (KeyError, distributed.DistError):
        return True


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def from_first(value: T) -> T:
    """The value that process 0 gave; every process must ask."""
    if world() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def gather(value: T) -> list[T]:
    """What every process gave, in the order of their numbers; every process must ask."""
    if world() == 1:
        return [value]
    boxes: list[T | None] = [None] * world()
    distributed.all_gather_object(boxes, value)
    return boxes  # type: ignore[return-value]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """On process 0 the parts (n, ...) of all as one array, one of each in turn; None on the others.

    That is the order of `samples.batches_in_order`. Every process must ask; where there are any
    parts, process 0 has one. They go into their places one by one, to save memory.
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
        if turn == len(lengths[process]):  # the last turn is not everyone's
            continue
        begin, end = end, end + lengths[process][turn]
        if process == 0:
            whole[begin:end] = parts[turn]
        else:
            distributed.recv(torch.from_numpy(whole[begin:end]), process)
    return whole


def must_agree(values: Mapping[str, object]) -> None:
    """Checks that all processes read the same `values`, by their `repr`; every process must ask.

    Raises:
        UserError: on every process; the message says what differs between which hosts.
    """
    given = gather((socket.gethostname(), {name: repr(value) for name, value in values.items()}))
    (first_host, first), *others = given
    for process, (host, theirs) in enumerate(others, start=1):
        for name, value in theirs.items():
            if first.get(name) != value:
                raise UserError(
                    f"{name}: process {process} on {host} has another than process 0 on "
                    f"{first_host}; all hosts must see the same files under the same paths"
                )


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over the processes, in place; every process must ask."""
    if world() > 1:
        distributed.all_reduce(tensor)
        tensor /= world()
    return tensor


def same_everywhere(tensors: Iterable[torch.Tensor]) -> None:
    """Gives every process the values that process 0 has, in place."""
    if world() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)
