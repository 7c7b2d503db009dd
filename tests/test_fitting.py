"""What a fit learns, in Python, on a tiny BERT."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gradvar.errors import GradvarError
from gradvar.fitting import Options, fit_mapnet
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.mapnet.losses import language
from gradvar.mapnet.score import read, table
from tests import cases


@pytest.fixture(scope="module")
def objective(tmp_path_factory):
    """Words count up from a random start, so that surroundings tell them; the model expects two of them."""
    place = tmp_path_factory.mktemp("fitting")
    cases.save_checkpoint(place / "bert")
    starts = np.random.default_rng(0).integers(0, 8, 80)
    lines = (" ".join(f"w{(start + step) % 8}" for step in range(60)) for start in starts)
    (place / "text.txt").write_text("\n\n".join(lines) + "\n")
    found = MaskedLM.from_checkpoint(place / "bert", place / "text.txt", max_length=12, contexts=2)
    with torch.no_grad():
        found.model.cls.predictions.bias[[found.vocabulary.ids["w0"], found.vocabulary.ids["w1"]]] += 9.0
    return found


OPTIONS = Options(epochs=3, learning_rate=0.01, shape=(("width", 8),))


def surprise(objective, network) -> float:
    """Cross-entropy of every token given its surroundings, in nats."""
    sentences = objective.sentences(list(range(32)), 0)
    with torch.no_grad():
        contexts = read(network, sentences, objective.scoring).contexts
        tokens = table(network, objective.scoring)
        return float(language(contexts, tokens, sentences.ids, sentences.maskable))


@pytest.mark.full
@pytest.mark.parametrize("embeddings", ["model", "own"])
def test_a_fit_learns_tokens_from_their_surroundings_if_asked(objective, embeddings):
    """Where it is not asked, a context serves the score alone."""
    options = replace(OPTIONS, shape=(*OPTIONS.shape, ("embeddings", embeddings)))
    asked, not_asked = (
        fit_mapnet(objective, replace(options, language=weight), held_out=8).network for weight in (1.0, 0.0)
    )
    assert surprise(objective, asked) < surprise(objective, not_asked) - 0.5
    kept = objective.scoring.token_embeddings(torch.arange(asked.config.vocabulary))
    tokens = table(asked, objective.scoring)
    assert tokens.shape == (asked.config.vocabulary, asked.config.embedding_width)
    assert (tokens.shape == kept.shape and torch.equal(tokens, kept)) == (embeddings == "model")


def test_a_fit_finds_what_the_model_does_not_expect(objective):
    fit = fit_mapnet(objective, OPTIONS, held_out=8)
    sentences = objective.sentences(list(range(32)), 0)
    with torch.no_grad():
        scores = read(fit.network, sentences, objective.scoring).log_scores
    expected = objective.model.cls.predictions.bias[sentences.ids] > 2
    own = sentences.maskable
    assert scores[own & ~expected].mean() > scores[own & expected].mean() + 0.1
    assert fit.ceiling_share.low > 0


@pytest.mark.parametrize("epochs", [1, pytest.param(3, marks=pytest.mark.full)])
def test_a_fit_is_the_same_again_and_another_with_another_weight_of_language(objective, epochs):
    options = [replace(OPTIONS, epochs=epochs, language=weight) for weight in (OPTIONS.language, OPTIONS.language, 0.2)]
    first, second, third = (fit_mapnet(objective, how, held_out=8) for how in options)
    assert first.curve == second.curve
    ours, theirs, others = (fit.network.state_dict() for fit in (first, second, third))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["context.weight"], others["context.weight"])


def test_the_options_are_in_the_record(objective):
    study = fit_mapnet(objective, replace(OPTIONS, epochs=1, language=0.25), held_out=8).study
    assert (study["language"], study["learning_rate"], study["epochs"]) == (0.25, 0.01, 1)


def test_the_curve_has_the_end_of_every_epoch_once(objective):
    """104 sentences: 32 choose the epoch, and after 64 others a power of two and the end of an epoch meet."""
    fit = fit_mapnet(objective, replace(OPTIONS, epochs=2), sentences=96, held_out=8)
    assert [seen for seen, _ in fit.curve] == [0, 64, 128]
    assert fit.ceiling_share in [share for _, share in fit.curve]


def test_a_text_that_is_too_short_is_said_to_be(objective):
    with pytest.raises(GradvarError) as error:
        fit_mapnet(objective, OPTIONS, held_out=len(objective) - 30)
    assert str(error.value).startswith(f"the data hold {len(objective)} sentences; a fit takes {len(objective) - 30}")


def test_every_position_is_asked_for_its_token(objective, monkeypatch):
    asked = []
    monkeypatch.setattr("gradvar.fitting.language", lambda *args: asked.append(args[3].sum(dim=1)) or language(*args))
    fit_mapnet(objective, replace(OPTIONS, epochs=1), sentences=96, held_out=8)
    assert len(asked) == 8
    assert (torch.cat(asked) == 10).all()
