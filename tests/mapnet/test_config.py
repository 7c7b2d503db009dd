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
        ({"max_length": True}, "a MAPNet of max_length True cannot be; give a whole number from 1 up"),
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
@pytest.mark.parametrize("changes", [{}, {"width": 12, "heads": 1, "layers": 3, "feed_forward": 2}])
def test_flops_are_those_that_torch_counts(embeddings, changes):
    """The counter does not know the fused attention of the CPU, hence the backend of plain products."""
    network = MapNet(networks.config(embeddings, **changes))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(networks.inputs(embeddings), networks.everything())
    assert counter.get_total_flops() == 3 * 7 * flops_per_token(network.config, 7)


@pytest.mark.parametrize(
    ("vocabulary", "input_width", "encoder", "length", "size"),
    [
        (30522, 768, 175e6, 128, (2, 256, 8)),  # about BERT-base: the widest there is
        (8192, 128, 1.9e6, 128, (2, 32, 1)),  # about the demo checkpoint
        (60, 16, 11e3, 32, (1, 4, 1)),  # about the tests' models
    ],
)
def test_default_config(vocabulary, input_width, encoder, length, size):
    found = default_config(vocabulary, input_width, encoder, length)
    assert (found.layers, found.width, found.heads) == size
    assert (found.vocabulary, found.input_width, found.max_length) == (vocabulary, input_width, length)
    assert flops_per_token(found, length) <= 0.1 * encoder


@pytest.mark.parametrize("encoder", [3e3 * 1.3**i for i in range(4, 40)])
def test_the_default_is_affordable_and_the_largest_that_is(encoder):
    found = default_config(100, 64, encoder, 128) if encoder > 3e4 else default_config(100, 4, encoder, 8)
    length, width = found.max_length, found.input_width
    assert flops_per_token(found, length) <= 0.1 * encoder
    assert default_config(100, width, 10 * flops_per_token(found, length), length) == found
    with_less = 10 * flops_per_token(found, length) * 0.999
    if (found.layers, found.width) != (1, 4):
        less = default_config(100, width, with_less, length)
        assert (less.layers, less.width) < (found.layers, found.width)


def test_an_encoder_too_small_for_any():
    with pytest.raises(GradvarError) as error:
        default_config(100, 64, 5000.0, 128)
    assert str(error.value) == (
        "no MAPNet is as cheap as a tenth of an encoder of 5,000 FLOPs a token; shorten --max-length from 128, or give "
        "the MAPNet's width and layers"
    )
