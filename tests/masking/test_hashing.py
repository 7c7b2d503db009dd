"""The hash behind every draw: the published sequence, and the properties that the draws rely on."""

import pytest
import torch
from scipy import stats

from gradvar.masking.hashing import hash_key, shift_right, splitmix64, unit_interval

GOLDEN = 0x9E3779B97F4A7C15
RARE = 1e-6  # a p-value below it fails: a right hash does so for one seed in a million


def signed(x: int) -> int:
    return (x + 2**63) % 2**64 - 2**63


def test_splitmix64_gives_the_published_sequence():
    """Seed 1234567; our function adds the increment itself, so state n is the seed plus n increments."""
    states = torch.tensor([signed(1234567 + n * GOLDEN) for n in range(5)])
    assert [x % 2**64 for x in splitmix64(states).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("bits", [1, 11, 30, 63])
@pytest.mark.parametrize("x", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_shift_right_is_logical(x, bits):
    assert shift_right(torch.tensor(x), bits).item() == (x % 2**64) >> bits


def test_every_bit_of_the_seed_matters():
    seeds = [0, *(1 << bit for bit in range(64))]
    assert len({hash_key(seed, torch.tensor(3)).item() for seed in seeds}) == len(seeds)


def test_seeds_are_integers_modulo_two_to_the_64():
    for seed in (0, 3, 2**63, 2**64 - 1):
        wrapped = [hash_key(s, torch.tensor(3)).item() for s in (seed, seed - 2**64, seed + 2**64)]
        assert len(set(wrapped)) == 1


@pytest.mark.parametrize("parts", [(3,), (3, 7), (-1, 2**62, 0)])
def test_hash_key_stays_what_it_is(parts):
    """A study's seed must mean the same draws in every version: xor and mix, part by part, in Python's integers."""

    def mix(x: int) -> int:
        x = (x + GOLDEN) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    expected = mix(11)
    for part in parts:
        expected = mix(expected ^ part % 2**64)
    assert hash_key(11, *map(torch.tensor, parts)).item() == signed(expected)


def test_every_part_and_its_place_matter():
    parts = torch.cartesian_prod(*[torch.arange(30)] * 3)
    keys = hash_key(0, *parts.unbind(1))
    assert len(keys.unique()) == len(parts)  # an accident has probability 27,000^2 / 2^65 = 2e-11


def test_parts_broadcast():
    rows, columns = torch.arange(4).unsqueeze(1), torch.arange(3)
    keys = hash_key(5, rows, columns)
    assert keys.shape == (4, 3)
    assert keys[2, 1] == hash_key(5, torch.tensor(2), torch.tensor(1))


@pytest.mark.parametrize("shift", [0, 28, 56])
@pytest.mark.parametrize("vary", ["seed", "first", "last"])
def test_bytes_are_uniform(vary, shift):
    """Chi-square over 256 values: nine p-values, so a right hash fails for one seed in 1e5."""
    index, zero = torch.arange(1 << 14), torch.tensor(0)
    if vary == "seed":
        keys = torch.stack([hash_key(seed, zero) for seed in index[: 1 << 12].tolist()])
    else:
        keys = hash_key(0, index, zero) if vary == "first" else hash_key(0, zero, index)
    counts = torch.bincount(shift_right(keys, shift) & 255, minlength=256)
    assert stats.chisquare(counts).pvalue > RARE


def test_unit_interval_takes_the_high_53_bits():
    keys = torch.tensor([0, 1 << 11, -1, -(2**63)])
    assert unit_interval(keys).tolist() == [0.0, 2.0**-53, 1 - 2.0**-53, 0.5]


def test_unit_interval_is_uniform():
    """Kolmogorov-Smirnov; a right hash fails for one seed in a million."""
    u = unit_interval(hash_key(1, torch.arange(1 << 16)))
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > RARE
