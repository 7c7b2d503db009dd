"""Devices by name: how fast each is, and how much it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradvar.errors import GradvarError
from gradvar.masking.proposal import nearest

_DEVICES = {  # dense FLOP/s in bfloat16 and in float32, and GiB, by the vendor's data sheets
    "a10": (125e12, 31.2e12, 24),
    "a100": (312e12, 19.5e12, 80),
    "h100": (989e12, 67e12, 80),
    "h200": (989e12, 67e12, 141),
    "l4": (121e12, 30.3e12, 24),
    "l40s": (362e12, 91.6e12, 48),
    "rtx3090": (71e12, 35.6e12, 24),
    "rtx4090": (165e12, 82.6e12, 24),
}
_SLOWEST = 1e8  # FLOP/s of any device


@dataclass(frozen=True)
class Devices:
    """Some devices of one kind.

    Attributes:
        count: How many.
        name: What they are called.
        flops: FLOP/s of each at best.
        memory: Bytes of each; None where that is not known.
    """

    count: int
    name: str
    flops: float
    memory: float | None


def parse_devices(text: str, bf16: bool) -> Devices:
    """Read what a run is to go on.

    Args:
        text: ``8xH100``, ``A100``, or FLOP/s of each in numbers: ``4x2.5e14``.
        bf16: Whether the arithmetic is bfloat16.

    Returns:
        The devices.

    Raises:
        GradvarError: If there are no such devices.
    """
    count, times, name = text.strip().lower().partition("x")
    if not times or not count.isdecimal():
        count, name = "1", text.strip().lower()
    if int(count) < 1:
        raise GradvarError(f"--devices {text}: give one device at least")
    try:
        flops = float(name)
    except ValueError:
        if name not in _DEVICES:
            hint = nearest(name, _DEVICES)
            raise GradvarError(f"--devices {text}: no FLOP/s are on record for '{name}'{hint}, or 4x2.5e14") from None
        half, full, memory = _DEVICES[name]
        return Devices(int(count), name.upper(), half if bf16 else full, memory * 2.0**30)
    if not _SLOWEST <= flops < math.inf:
        raise GradvarError(f"--devices {text}: {flops:g} FLOP/s is impossible; write how many, x, and what: 8xH100")
    return Devices(int(count), f"{flops:.3g} FLOP/s", flops, None)
