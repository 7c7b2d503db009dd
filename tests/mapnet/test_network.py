"""What the MAPNet says of sentences, and of what it does not read."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradvar.errors import GradvarError
from gradvar.mapnet.network import BOUND, MapNet, _Layer, _neighbours
from tests.mapnet import networks

both = pytest.mark.parametrize("embeddings", networks.EMBEDDINGS)


@both
def test_an_unfitted_mapnet_scores_all_alike(embeddings):
    scores = MapNet(networks.config(embeddings))(networks.inputs(embeddings), networks.everything())
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[0.0] * 7] * 3


@both
def test_a_fitted_mapnet_does_not(embeddings):
    """Its scores depend on the token and on what surrounds it; out of the window, not on the order of that."""
    network, read = networks.fitted(embeddings), networks.inputs(embeddings, rows=1)
    scores, swapped = (network(x, networks.everything(1)) for x in (read, read[:, [0, 1, 2, 3, 4, 6, 5]]))
    assert scores.std() > 0.01
    torch.testing.assert_close(scores[:, :3], swapped[:, :3], rtol=0, atol=1e-6)
    assert ((scores - swapped)[:, 3:].abs() > 1e-4).all()


@both
def test_contexts_do_not_depend_on_their_own_token(embeddings):
    """But on every other one, near or far, through however many layers; the score does on its own."""
    network, read = networks.fitted(embeddings).double(), networks.inputs(embeddings, rows=1)
    read = read if embeddings == "own" else read.double()
    other = read.clone()
    other[:, 3] = networks.inputs(embeddings, rows=1, seed=1)[:, 3]
    (scores, contexts), (others, changed) = (network.read(x, networks.everything(1)) for x in (read, other))
    moved = (contexts - changed).abs().amax(dim=(0, 2))
    assert moved[3] == 0
    assert (moved[[0, 1, 2, 4, 5, 6]] > 1e-4).all()
    assert (scores - others)[0, 3].abs() > 1e-4


def test_the_head_reads_token_and_context_beside_their_agreement():
    """Which is zero here: a changed token then moves the scores of its own position and of the others."""
    network, read = networks.fitted(), networks.inputs("model", rows=1)
    with torch.no_grad():
        network.context.weight.zero_()
        network.context.bias.zero_()
    other = read.clone()
    other[:, 3] += 1
    moved = (network(read, networks.everything(1)) - network(other, networks.everything(1))).abs()
    assert (moved > 1e-4).all()


def test_a_head_that_reads_the_agreement_alone():
    """It is that of the context with the very embedding: a score of ``gelu <c_i, e_i>``, bounded."""
    network, read = networks.fitted(), networks.inputs("model")
    with torch.no_grad():
        for parameter in (*network.hidden.parameters(), *network.head.parameters()):
            parameter.zero_()
        network.hidden.weight[0, -1] = network.head.weight[0, 0] = 1.0
    scores, contexts = network.read(read, networks.everything())
    expected = 8 * torch.tanh(nn.functional.gelu((contexts * read).sum(dim=2)) / 8)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_what_a_layer_attends_to():
    """The tokens elsewhere, of three of which the last is padding, and nothing, which is always there."""
    network, seen = networks.fitted(), []
    network.layers[1].register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[2]))
    network(networks.inputs("model", 1, 3), torch.tensor([[True, True, False]]))
    assert seen[0].int().tolist() == [[[[0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 1]]]]


def test_neighbours():
    tokens = torch.arange(1.0, 6.0).view(1, 5, 1)
    assert _neighbours(tokens, 2).tolist() == [
        [[0, 0, 2, 3], [0, 1, 3, 4], [1, 2, 4, 5], [2, 3, 5, 0], [3, 4, 0, 0]],
    ]
    assert _neighbours(tokens[:, :1], 3).tolist() == [[[0.0] * 6]]


def test_a_layer_is_the_transformers():
    """With the same weights, padding, and none of them its own, torch's attention and a feed-forward block say so."""
    layer = _Layer(networks.config()).double()
    peer = nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter in (*layer.parameters(), *peer.parameters()):
            parameter += 0.3 * torch.randn_like(parameter)
        layer.query.weight.copy_(peer.in_proj_weight[:8])
        layer.query.bias.copy_(peer.in_proj_bias[:8])
        layer.key_value.weight.copy_(peer.in_proj_weight[8:])
        layer.key_value.bias.copy_(peer.in_proj_bias[8:])
        layer.output.load_state_dict(peer.out_proj.state_dict())
    context, tokens = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    attention = torch.arange(7) < torch.tensor([[7], [4], [1]])
    hidden_from = torch.eye(7, dtype=torch.bool) | ~attention.unsqueeze(1)
    mixed, _ = peer(layer.attention_norm(context), tokens, tokens, attn_mask=hidden_from.repeat_interleave(2, dim=0))
    expected = context + mixed
    block = nn.functional.gelu(layer.widen(layer.feed_forward_norm(expected)))
    expected = expected + layer.narrow(block)
    found = layer(context, tokens, nn.functional.pad(~hidden_from, (0, 1), value=True).unsqueeze(1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@both
def test_gradients_reach_all_of_a_fitted_mapnet(embeddings):
    """Keys have no gradient in their bias, to which softmax is blind; embeddings only in rows that were read."""
    network = networks.fitted(embeddings)
    scores, contexts = network.read(networks.inputs(embeddings), networks.everything())
    (scores.square().sum() + contexts.square().sum()).backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in network.parameters())


def test_the_embeddings_given_get_a_gradient_where_they_ask_for_one():
    """They are part of a graph, as those of an encoder in training are; who wants none detaches them."""
    weight = torch.ones(1, requires_grad=True)
    scores = networks.fitted()(weight * networks.inputs("model"), networks.everything())
    (gradient,) = torch.autograd.grad(scores.sum(), [weight])
    assert abs(float(gradient)) > 1e-6


@both
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(embeddings, side):
    """Whatever stands in it: not-a-number among the embeddings, negative ids. 1e-5 is float32's summation order."""
    network, read = networks.fitted(embeddings), networks.inputs(embeddings)
    places = {"left": range(3, 10), "right": range(7)}[side]
    padded = torch.full((3, 10, *read.shape[2:]), -1 if embeddings == "own" else torch.nan, dtype=read.dtype)
    padded[:, places] = read
    attention = torch.zeros(3, 10, dtype=torch.bool)
    attention[:, places] = True
    scores = network(padded, attention)
    torch.testing.assert_close(scores[:, places], network(read, networks.everything()), rtol=0, atol=1e-5)
    assert (scores[~attention] == 0).all()
    scores.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@both
def test_rows_know_nothing_of_each_other(embeddings):
    """Of different lengths, and one of padding alone, which stays a number, as do all gradients."""
    network, read = networks.fitted(embeddings), networks.inputs(embeddings)
    attention = torch.arange(7) < torch.tensor([[7], [4], [0]])
    scores = network(read, attention)
    alone = network(read[1:2, :4], networks.everything(1, 4))
    torch.testing.assert_close(scores[1, :4], alone[0], rtol=0, atol=1e-5)
    scores.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_are_bounded(sign):
    network = networks.fitted()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(sign * 1e30)
    assert (network(networks.inputs("model"), networks.everything()) == sign * BOUND).all()


def test_the_bound_is_soft():
    network = networks.fitted()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(4.0)
    scores = network(networks.inputs("model"), networks.everything())
    torch.testing.assert_close(scores, torch.full((3, 7), 3.6969373), rtol=1e-6, atol=0)  # 8 tanh(1/2)


def test_the_temperature_divides_log_scores():
    network, read = networks.fitted(), networks.inputs("model")
    scores = network(read, networks.everything())
    network.config = replace(network.config, temperature=2.0)
    assert torch.equal(network(read, networks.everything()), scores / 2)


@both
def test_half_precision_embeddings_and_networks_give_float32(embeddings):
    network, read = networks.fitted(embeddings), networks.inputs(embeddings)
    if embeddings == "model":
        assert network(read.double(), networks.everything()).dtype == torch.float32
    assert network.bfloat16()(read, networks.everything()).dtype == torch.float32


@pytest.mark.parametrize(
    ("embeddings", "shape", "message"),
    [
        ("model", (3, 7, 9), "reads embeddings of shape [3, 7, 12], not [3, 7, 9]; give what its configuration's"),
        ("model", (3, 7), "reads embeddings of shape [3, 7, 12], not [3, 7]; give what its configuration's"),
        ("own", (3, 7, 12), "reads ids of shape [3, 7], not [3, 7, 12]; give what its configuration's"),
        ("own", (3, 6), "reads ids of shape [3, 7], not [3, 6]; give what its configuration's"),
    ],
)
def test_inputs_that_it_cannot_read(embeddings, shape, message):
    with pytest.raises(GradvarError) as error:
        networks.fitted(embeddings)(torch.zeros(shape), networks.everything())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ((51, 12), "the MAPNet is for a vocabulary of 50 tokens, the encoder has 51; fit one to this encoder"),
        ((50, 16), "the MAPNet reads embeddings of width 12, the encoder's are 16 wide; fit one to this encoder"),
    ],
)  # fmt: skip
def test_encoders_that_it_does_not_fit(encoder, message):
    with pytest.raises(GradvarError) as error:
        networks.fitted().check_fits(*encoder)
    assert str(error.value) == message


def test_encoders_that_it_fits():
    networks.fitted().check_fits(50, 12)
    networks.fitted("own").check_fits(50, 16)
    with pytest.raises(GradvarError, match="vocabulary of 50"):
        networks.fitted("own").check_fits(51, 12)
