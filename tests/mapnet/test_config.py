"""Shapes that can be, and what they cost."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gradvar.errors import GradvarError
from gradvar.mapnet.config import default_config, flops_per_token
from gradvar.mapnet.network import MapNet
from tests.mapnet import networks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "a MAPNet of layers 0 cannot be; give a whole number from 1 up"),
        ({"width": 8.0}, "a MAPNet of width 8.0 cannot be; give a whole number from 1 up"),
        ({"window": True}, "a MAPNet of window True cannot be; give a whole number from 1 up"),
        ({"feed_forward": "4"}, "a MAPNet of feed_forward '4' cannot be; give a whole number from 1 up"),
        ({"heads": 3}, "a MAPNet's width of 8 cannot be shared among 3 heads; give a multiple of them"),
        ({"temperature": 0.1}, "a MAPNet's temperature cannot be 0.1; give a number from 0.125 up"),
        ({"temperature": float("nan")}, "a MAPNet's temperature cannot be nan; give a number from 0.125 up"),
        ({"temperature": float("inf")}, "a MAPNet's temperature cannot be inf; give a number from 0.125 up"),
        ({"temperature": "1"}, "a MAPNet's temperature cannot be '1'; give a number from 0.125 up"),
        ({"embeddings": "theirs"}, "a MAPNet has no embeddings 'theirs'; use model or own"),
    ],
)
def test_shapes_that_cannot_be(changes, message):
    with pytest.raises(GradvarError) as error:
        networks.config(**changes)
    assert str(error.value) == message


@pytest.mark.parametrize("embeddings", networks.EMBEDDINGS)
@pytest.mark.parametrize("changes", [{}, {"width": 12, "heads": 1, "layers": 3, "feed_forward": 3, "window": 3}])
def test_flops_are_those_that_torch_counts(embeddings, changes):
    """The counter does not know the fused attention of the CPU, hence the backend of plain products."""
    network = MapNet(networks.config(embeddings, **changes))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(networks.inputs(embeddings), networks.everything())
    assert counter.get_total_flops() == 3 * 7 * flops_per_token(network.config, 7)


@pytest.mark.parametrize(
    ("vocabulary", "input_width", "encoder", "length", "width"),
    [
        (30522, 768, 175e6, 128, 256),  # about BERT-base: the widest there is
        (8192, 128, 1.57e6, 128, 48),  # about the demo checkpoint
        (60, 16, 15e3, 32, 4),  # about the tests' models
    ],
)
def test_default_config(vocabulary, input_width, encoder, length, width):
    found = default_config(vocabulary, input_width, encoder, length)
    assert (found.width, found.layers, found.heads) == (width, 1, max(1, width // 32))
    assert (found.vocabulary, found.input_width) == (vocabulary, input_width)
    assert flops_per_token(found, length) <= 0.1 * encoder


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("width", [4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256])
def test_the_default_is_the_widest_that_is_affordable(width, layers):
    """At ten times its own cost a width is the default, below that the next one is."""
    cost = flops_per_token(networks.config(width=width, window=4, layers=layers, heads=1), 128)
    assert default_config(100, networks.INPUT_WIDTH, 10 * cost, 128, layers=layers).width == width
    if width > 4:
        assert default_config(100, networks.INPUT_WIDTH, 9.99 * cost, 128, layers=layers).width < width


def test_a_given_width_costs_what_it_costs():
    """Heads are about 32 wide, and as many as the width can be shared among."""
    found = [default_config(100, 64, 5000.0, 128, width=width) for width in (1024, 8, 100, 101)]
    assert [(c.width, c.heads) for c in found] == [(1024, 32), (8, 1), (100, 2), (101, 1)]
    assert default_config(100, 64, 5000.0, 128, width=100, heads=5).heads == 5


def test_given_heads_choose_among_the_widths_that_they_can_share():
    found = default_config(100, 64, 1e9, 128, heads=3)
    assert (found.width, found.heads) == (192, 3)


def test_an_encoder_too_small_for_any():
    with pytest.raises(GradvarError) as error:
        default_config(100, 64, 5000.0, 128)
    assert str(error.value) == (
        "no MAPNet is as cheap as a tenth of an encoder of 5,000 FLOPs a token; shorten the sequences from 128 tokens, "
        "or give the MAPNet a width, such as mapnet.shape.width=4 in a recipe, MapNetTraining(shape={'width': 4}), or "
        "gradvar fit-mapnet --width 4"
    )
    assert default_config(100, 64, 5000.0, 128, width=4).width == 4


def test_heads_that_share_no_width_that_is_tried():
    with pytest.raises(GradvarError) as error:
        default_config(100, 64, 1e9, 128, heads=9)
    assert str(error.value).startswith(
        "none of the widths that are tried can be shared among 9 heads; give the MAPNet a width, such as "
        "mapnet.shape.width=288 in a recipe"
    )
    assert default_config(100, 64, 1e9, 128, heads=9, width=288).heads == 9
