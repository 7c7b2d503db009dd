import pytest
import torch

from gradvar.huggingface.forward import logits_at
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
