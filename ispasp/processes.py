"""Several processes of one launch that work on the same run, each with a share of the data.

``torchrun`` starts them and tells each by environment variables who it is (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT,
LOCAL_RANK). Sums over data are reduced over all of them and come out the same to the last bit in each, so that what is
decided by such sums is decided alike everywhere. A process that runs alone passes through here at no cost.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ProcessError, SettingError, listing

TIMEOUT_SECONDS = 600.0  # how long a process waits for the others
SAYING_SECONDS = 5.0  # and how long to learn whether another has said why they end
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """Those that work together, as one of them sees it.

    Attributes:
        rank: which of them this is, from 0.
        size: how many there are.
        device_index: which of its machine's GPUs this one uses.
    """

    rank: int
    size: int
    device_index: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0


ALONE = Processes(0, 1)

# A process takes part in one launch at a time; what its threads do, it does.
_here = ALONE
_sharing = False
_stores: dict[str, dist.Store] = {}  # of the launch, by its address: it outlasts the groups that met there
_times = itertools.count()  # that this process has joined, in step with the others
_ended: dist.Store | None = None
_timeout = TIMEOUT_SECONDS


def launched() -> bool:
    """Whether this process was started as one of several."""
    size = os.environ.get("WORLD_SIZE", "1")
    return not size.isdecimal() or int(size) > 1


def here() -> Processes:
    """Those that this process has joined; ``ALONE`` where it has joined none."""
    return _here


@contextmanager
def joined(device: str = "auto", timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Processes]:
    """Join the others of the launch, and leave them at the end; ``ALONE`` where there was no launch.

    CPU tensors are reduced by gloo, those on GPUs by NCCL where every process has one of its own.

    Args:
        device: what the work runs on, as in ``ispasp.prune``.
        timeout_seconds: how long to wait for one of the others before it counts as standing still.

    Raises:
        ProcessError: the launch's environment variables are incomplete, the others are not there in time, or
            torch.distributed is in use already. Within the block, every function of this module that needs the others
            raises it where one has ended or stands still.
    """
    global _here, _ended, _timeout
    if launched() and dist.is_initialized():
        raise ProcessError(
            "This process has a torch.distributed group already; leave it (torch.distributed.destroy_process_group) "
            "before this work, which makes its own."
        )
    _ended = None
    if not launched():
        yield ALONE
        return
    rank, size, local = _from_environment()
    limit = timedelta(seconds=timeout_seconds)
    several_gpus = torch.cuda.is_available() and device in ("auto", "cuda")
    index = local % torch.cuda.device_count() if several_gpus else 0
    own_gpu = several_gpus and int(os.environ.get("LOCAL_WORLD_SIZE", size)) <= torch.cuda.device_count()
    # Otherwise NCCL would kill the process without a word when it has waited too long.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        if place not in _stores:
            _stores[place], _, _ = next(iter(dist.rendezvous("env://", rank, size, timeout=limit)))
        _stores[place].set_timeout(limit)
        # What an earlier group has left there would mislead a later one.
        store = dist.PrefixStore(f"group {next(_times)}", _stores[place])
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if own_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=limit,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ProcessError(
            f"The {size} processes have not found one another at {place} ({_cause(error)}); start them together, "
            f"such as with torchrun --nproc-per-node {size}."
        ) from error
    if several_gpus:
        torch.cuda.set_device(index)
    _here, _ended, _timeout = Processes(rank, size, index), dist.PrefixStore("ended", store), timeout_seconds
    try:
        yield _here
    except BaseException:
        assert dist.group.WORLD is not None
        dist.group.WORLD.abort()  # or leaving would wait for who is not there
        raise
    finally:
        _here = ALONE
        dist.destroy_process_group()


def _from_environment() -> tuple[int, int, int]:
    """Rank, size and the rank on this machine."""
    if missing := [name for name in _VARIABLES if not os.environ.get(name)]:
        raise ProcessError(
            f"WORLD_SIZE says that there are several processes, but {listing(missing)} is not set; start them with "
            "torchrun, which sets all of them, or clear WORLD_SIZE."
        )
    values = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    for name, text in values.items():
        if not text.isdecimal():
            raise ProcessError(
                f"{name} is {text!r}; give a whole number, or start with torchrun, which sets it."
            )
    rank, size, local = (int(text) for text in values.values())
    if rank >= size:
        raise ProcessError(f"RANK is {rank} and WORLD_SIZE {size}; ranks go from 0 to {size - 1}.")
    return rank, size, local


@contextmanager
def shared() -> Iterator[Processes]:
    """Within, calibration data are this process's share of them, and sums over data are those of all processes."""
    global _sharing
    before, _sharing = _sharing, True
    try:
        yield _here
    finally:
        _sharing = before


def sharers() -> Processes:
    """Those that share the calibration data: those joined within ``shared``, else ``ALONE``."""
    return _here if _sharing else ALONE


def total(value: Tensor) -> Tensor:
    """``value`` summed over the processes that share the data; ``value`` itself, and nothing done, where none do.

    It may be overwritten. All of them must come here, with the same shape and type.

    Raises:
        ProcessError: as ``joined``.
    """
    return value if sharers().size == 1 else _reduced(value)


def total_number(value: float) -> float:
    """The same of a number."""
    return value if sharers().size == 1 else _number(value)


def gathered(value: Tensor) -> Tensor:
    """The rows (n, ...) of all processes that share the data, in their order; n may differ.

    Raises:
        ProcessError: as ``joined``.
    """
    group = sharers()
    if group.size == 1:
        return value
    counts = torch.zeros(group.size, dtype=torch.int64)
    counts[group.rank] = len(value)
    ends = _reduced(counts).cumsum(0).tolist()
    rows = value.new_zeros(ends[-1], *value.shape[1:])
    rows[ends[group.rank] - len(value) : ends[group.rank]] = value
    return _reduced(rows)


def summed(value: Tensor) -> Tensor:
    """``value`` summed over all joined processes, sharing or not, as a new tensor through which gradients flow.

    Each process's loss is taken to be a part of one sum.

    Raises:
        ProcessError: as ``joined``.
    """
    result: Tensor = value if _here.size == 1 else _Sum.apply(value)
    return result


def agreed(flag: bool) -> bool:
    """Whether any of the joined processes says so. All must come here, which makes it a place to meet.

    Raises:
        ProcessError: as ``joined``.
    """
    return flag if _here.size == 1 else _number(float(flag)) > 0


def meet() -> None:
    """Wait for all that share the data, so that nothing is saved of work that one of them did not bring to its end.

    Raises:
        ProcessError: as ``joined``.
    """
    total_number(0)


def check_alone(what: str) -> None:
    """Refuse ``what``, a sentence's beginning, to several processes.

    Raises:
        SettingError: there are several.
    """
    if _here.size > 1:
        raise SettingError(f"{what} runs in one process; start it without torchrun.")


def share(batches: Sequence[Batch]) -> list[Batch]:
    """This process's part of ``batches``: consecutive examples, as many as the others have or one more.

    All of them where nobody shares.

    Raises:
        CalibrationError: there are fewer examples than processes.
    """
    group, examples = sharers(), sum(map(len, batches))
    if examples < group.size:
        raise CalibrationError(
            f"{examples} calibration examples cannot be shared by {group.size} processes; start fewer, or give more "
            "examples."
        )
    least, rest = divmod(examples, group.size)
    first = group.rank * least + min(group.rank, rest)
    last = first + least + (group.rank < rest)
    found, seen = [], 0
    for batch in batches:
        start, end = max(0, first - seen), min(len(batch), last - seen)
        if start < end:
            whole = end - start == len(batch)
            found.append(batch if whole else batch.first(end).after(start))
        seen += len(batch)
    return found


def first_to_end() -> bool:
    """Whether no process of the launch has said yet why it ends: what ends one ends all, and is to be said once."""
    store, answers = _ended, list[int]()
    if store is None:
        return True

    def ask() -> None:
        with suppress(RuntimeError):  # it has gone with the process that held it
            answers.append(store.add("said", 1))

    # The store's own timeout does not hold where that process stands still.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SAYING_SECONDS)
    return not answers or answers[0] == 1


class _Sum(torch.autograd.Function):
    """A sum over processes, and of the gradients that come back."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return _reduced(value.clone())

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _reduced(gradient.clone())


def _number(value: float) -> float:
    return float(_reduced(torch.tensor(value, dtype=torch.float64)))


def _reduced(value: Tensor) -> Tensor:
    """The sum over all joined processes, in place where it can be."""
    home = value.device
    dense = (value if home.type in ("cpu", "cuda") else value.cpu()).contiguous()
    try:
        dist.all_reduce(dense)
    except RuntimeError as error:
        raise ProcessError(
            f"One of the {_here.size} processes has ended or stood still for {_timeout:g} s, so process "
            f"{_here.rank} ends, too ({_cause(error)}); what was finished before is kept."
        ) from error
    return dense.to(home)


def _cause(error: Exception) -> str:
    """The first sentence of its message, without the line of C++ that it comes from."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^]]*:\d+\] *", "", first).partition(". ")[0]
