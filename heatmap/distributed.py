"""The few words that several training processes say to each other, started by `torchrun`.

In a single process each is the identity.
"""

import os
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def start(device: torch.device) -> torch.device:
    """Joins the processes that torchrun started, if it did; returns this process's device."""
    if "RANK" not in os.environ:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def stop() -> None:
    """Leaves the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this process writes the files; true also before `start`."""
    return os.environ.get("RANK", "0") == "0"


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
