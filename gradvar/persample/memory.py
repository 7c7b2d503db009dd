"""How much memory there is, and how much a batch of cells takes."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch import Tensor

from gradvar.errors import GradvarError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in malloc.h
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_memory(text: str) -> int:
    """Parse ``4GiB``, ``512MB`` or a plain number of bytes.

    Args:
        text: The amount; units are powers of 1024, ``B`` and ``iB`` are optional.

    Returns:
        Bytes.

    Raises:
        GradvarError: If it is not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    size = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= size < 2**63:
        raise GradvarError(f"--memory '{text}' is not an amount of memory; write it like 4GiB or 512MiB")
    return int(size)


def format_memory(size: float) -> str:
    """Write bytes as ``1.50 GiB`` or ``12.3 MiB``."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds on the device, what was freed apart."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    release_freed_memory()
    return psutil.Process().memory_info().rss


def default_budget(device: torch.device) -> int:
    """What this process may hold in all: what it has, and 70 % of what is free, shared with those of `torchrun`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
        limit = Path("/sys/fs/cgroup/memory.max")
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            current = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(int(text) - current, 0))
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return used_memory(device) + int(0.7 * free)


def keep_freed_memory() -> None:
    """Let the C allocator keep up to 256 MiB of freed memory, where it is glibc; process-wide.

    Its own habit is to hand the logits of every chunk back to the system, which then page-faults them in anew:
    a fifth of the time of a small model.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 2**25)  # the most it takes; setting the other would freeze it at less
        library.mallopt(_TRIM_THRESHOLD, 2**28)


def release_freed_memory() -> None:
    """Hand what :func:`keep_freed_memory` kept back to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class Rise:
    """How far the memory in use rises within a block above what it was before, at the most; in :attr:`bytes`.

    On a CPU another thread looks every few milliseconds, and may come late on a busy machine. The system's own mark is
    exact where it rises; it is never reset, as a user's own tools read it as well.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> Rise:
        self._before = used_memory(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._mark = _high_water_mark()
            self._done = threading.Event()
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        else:
            self._done.set()
            self._thread.join()
            mark = _high_water_mark()
            if mark > self._mark:
                self.bytes = max(self.bytes, mark - self._before)

    def _look(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, process.memory_info().rss - self._before)


def _high_water_mark() -> int:
    """The most bytes that this process has held so far; 0 where there is no Linux to tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


class Footprint:
    """Counts the distinct storages that autograd keeps for the backward pass.

    Args:
        ignored: Addresses of storages that do not count, such as the parameters'.
    """

    def __init__(self, ignored: set[int]) -> None:
        self._ignored = ignored
        self._seen: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Bytes kept."""
        return sum(self._seen.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor kept."""
        return max(self._seen.values(), default=0)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count everything saved inside the block."""

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._ignored:
                self._seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
