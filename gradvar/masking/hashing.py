"""Counter-based randomness: every draw is a pure function of integers, whatever the order or device."""

from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _signed(x: int) -> int:
    """Wrap an integer around to 64 bits with a sign."""
    return (x + 2**63) % 2**64 - 2**63


def _mixed(x: int) -> int:
    """`splitmix64` of one integer, without a tensor: uploading it to a GPU would stop every draw."""
    x = (x + _GOLDEN) % 2**64
    x = (x ^ (x >> 30)) * _MIX_1 % 2**64
    x = (x ^ (x >> 27)) * _MIX_2 % 2**64
    return _signed(x ^ (x >> 31))


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, which torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """Map int64 to well-mixed int64, elementwise; a bijection of the 64-bit integers.

    The output function of the SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014), in
    wrap-around arithmetic.

    Args:
        x: Any int64 tensor.

    Returns:
        int64 tensor of the same shape.
    """
    x = x + _GOLDEN
    x = (x ^ shift_right(x, 30)) * _MIX_1
    x = (x ^ shift_right(x, 27)) * _MIX_2
    return x ^ shift_right(x, 31)


def hash_key(seed: int, *parts: Tensor) -> Tensor:
    """Hash ``(seed, *parts)`` to int64, broadcasting the parts against each other.

    Args:
        seed: Any Python integer; all 64 low bits count.
        *parts: int64 tensors, such as sentence, mask index and position.

    Returns:
        int64 tensor of the broadcast shape.
    """
    first, *others = parts
    key = splitmix64(first ^ _mixed(seed))
    for part in others:
        key = splitmix64(key ^ part)
    return key


def unit_interval(key: Tensor) -> Tensor:
    """Turn int64 hashes into float64 uniform on [0, 1), from their 53 high bits."""
    return shift_right(key, 11).double() * 2.0**-53
