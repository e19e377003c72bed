"""What the ranks of a run tell each other; one process without a process group is all of them."""

from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


def several() -> bool:
    """Whether there is a process group."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, 0 where it is alone."""
    return distributed.get_rank() if several() else 0


def of_all(value: T) -> list[T]:
    """Every rank's value, on every rank, by their numbers; every rank has to call it."""
    if not several():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank; every rank has to call it."""
    if not several():
        return value
    values = [value]
    distributed.broadcast_object_list(values, 0)
    return values[0]
