import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gradvar.huggingface.forward import encoder_flops_per_token, logits_at
from tests.cases import model


@pytest.fixture(params=["bert", "modernbert"])
def masked_lm(request):
    return model(request.param)


@pytest.fixture
def inputs():
    ids = torch.randint(5, 60, (3, 11))
    kept = torch.arange(11) < torch.tensor([[11], [8], [5]])
    return {"input_ids": ids * kept, "attention_mask": kept.long()}


POSITIONS = torch.tensor([[0, 5, 10], [7, 2, 2], [4, 0, 1]])  # unordered, and one of them twice


@pytest.mark.parametrize("padded", [True, False])
def test_logits_are_those_of_the_full_model(masked_lm, inputs, padded):
    if not padded:
        del inputs["attention_mask"]
    with torch.no_grad():
        full = masked_lm(**inputs).logits
        some = logits_at(masked_lm, POSITIONS, True, **inputs)
    assert some.shape == (3, 3, 60)
    torch.testing.assert_close(some, full[torch.arange(3).unsqueeze(1), POSITIONS], rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_full_model(masked_lm, inputs):
    parameters = list(masked_lm.parameters())
    full = masked_lm(**inputs).logits[torch.arange(3).unsqueeze(1), POSITIONS]
    expected = torch.autograd.grad(full.square().sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(
        logits_at(masked_lm, POSITIONS, True, **inputs).square().sum(), parameters, allow_unused=True
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_no_hook_stays_behind(masked_lm, inputs):
    before = masked_lm(**inputs).logits
    logits_at(masked_lm, POSITIONS, True, **inputs)
    with pytest.raises(IndexError):
        logits_at(masked_lm, POSITIONS + 11, True, **inputs)
    assert not any(module._forward_hooks for module in masked_lm.modules())
    assert torch.equal(masked_lm(**inputs).logits, before)


@pytest.mark.parametrize(("kind", "times"), [("bert", 1), ("albert", 2)])
def test_encoder_flops_are_those_that_torch_counts(kind, times):
    """Of ALBERT's two layers, which share their weights, too. The pooler reads one position."""
    built = model(kind)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        built.base_model(input_ids=torch.ones(1, 9, dtype=torch.int64))
    assert 9 * encoder_flops_per_token(built, 9) == pytest.approx(counter.get_total_flops())
    layers = [name for name, _ in built.named_modules() if name.endswith(".query")]
    assert len(layers) * times == built.config.num_hidden_layers
