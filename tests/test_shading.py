"""Scores of tokens are those that proposals draw by; every one is measured once."""

import numpy as np
import pytest
import torch

import gradvar
from gradvar.errors import GradvarError
from gradvar.huggingface.scoring import Scoring
from gradvar.huggingface.texts import from_texts, readable, text_corpus
from gradvar.mapnet.config import MapNetConfig
from gradvar.mapnet.network import MapNet
from gradvar.masking.masks import Masks
from gradvar.shading import score_tokens
from tests import cases

VOCABULARY, WIDTH = 60, 16


def network(seed=3):
    torch.manual_seed(seed)
    built = MapNet(MapNetConfig(VOCABULARY, WIDTH, "model", width=8, layers=1, heads=2))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return built.double()


def autograd_norm(objective, sentence, chosen, key, target):
    """Norm of the gradient of one target's loss, in a context whose other targets are corrupted too."""
    valid = torch.ones_like(chosen, dtype=torch.bool)
    batch = objective.corrupted(sentence, Masks(chosen, valid, valid.double(), key))
    logits = objective.model(input_ids=batch["input_ids"]).logits[0, chosen[0, target]]
    loss = torch.nn.functional.cross_entropy(logits, batch["target_ids"][0, target])
    found = torch.autograd.grad(loss, list(objective.model.parameters()), allow_unused=True, materialize_grads=True)
    return float(torch.cat([part.flatten() for part in found]).norm()), float(loss.detach())


def test_scores_are_root_mean_squares_over_contexts_of_what_autograd_gives():
    objective = cases.objective(contexts=3)
    result = score_tokens(objective, [5], seed=2)
    sentence = objective.sentences([5], 2)
    positions, keys = objective.scoring._covering(sentence)
    norms, losses = np.zeros((3, 12)), np.zeros((3, 12))
    for context in range(3):
        seen = np.zeros(12)
        for number, chosen in enumerate(positions[context]):
            for target, position in enumerate(chosen.tolist()):
                norm, loss = autograd_norm(objective, sentence, chosen[None], keys[context, number][None], target)
                norms[context, position] += norm**2
                losses[context, position] += loss**2
                seen[position] += 1
        norms[context] /= np.maximum(seen, 1)
        losses[context] /= np.maximum(seen, 1)
    (scored,) = result.sentences
    assert scored.scores["oracle"] == pytest.approx(np.sqrt(norms.mean(axis=0)), rel=1e-9)
    assert scored.scores["loss"] == pytest.approx(np.sqrt(losses.mean(axis=0)), rel=1e-9)
    assert scored.maskable.tolist() == [False, *[True] * 10, False]
    assert scored.tokens == ("[CLS]", *(f"w{i - 5}" for i in objective.corpus.sequences[5][1:-1]), "[SEP]")
    assert result.study.items() >= {"contexts": 3, "seed": 2, "sentences": 1, "mask_rate": 0.3}.items()


def test_padding_changes_nothing():
    objective = cases.objective(padded=True, mapnet=network())
    together = score_tokens(objective, [0, 1, 2, 3])
    for index, scored in enumerate(together.sentences):
        alone = score_tokens(cases.objective(padded=True, mapnet=network()), [index]).sentences[0]
        assert len(scored.tokens) == len(objective.corpus.sequences[index])
        assert scored.tokens == alone.tokens
        assert scored.scores.keys() == {"oracle", "loss", "logit", "mapnet"}
        for name, values in scored.scores.items():
            precision = 1e-5 if name == "mapnet" else 1e-9  # a network answers in float32
            assert values == pytest.approx(alone.scores[name], rel=precision), name


def test_a_network_gives_its_own_scores():
    objective = cases.objective(mapnet=network())
    (scored,) = score_tokens(objective, [4]).sentences
    with torch.no_grad():
        ids = torch.from_numpy(objective.corpus.sequences[4].astype(np.int64))[None]
        embedded = objective.model.get_input_embeddings()(ids)
        expected = (
            objective.known_scores["mapnet"].network(embedded, torch.ones_like(ids, dtype=torch.bool)).double().exp()[0]
        )
    assert scored.scores["mapnet"][1:-1] == pytest.approx(expected[1:-1].numpy(), rel=1e-9)
    assert "mapnet" not in score_tokens(cases.objective(), [4]).sentences[0].scores


def test_sampled_sentences_are_the_first_of_a_study():
    objective = cases.objective()
    study = gradvar.decompose(objective, sentences=4, masks=2, seed=7)
    assert [s.datum for s in score_tokens(objective, 3, seed=7).sentences] == study.data[:3].tolist()


def test_what_was_measured_is_not_measured_again(monkeypatch):
    objective = cases.objective()
    first = score_tokens(objective, [1, 2])
    monkeypatch.setattr(Scoring, "_gradients", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(Scoring, "_forward", lambda *_: pytest.fail("measured again"))
    again = score_tokens(objective, [2])
    assert (again.sentences[0].scores["oracle"] == first.sentences[1].scores["oracle"]).all()


@pytest.mark.parametrize("kind", ["compare", "decompose"])
def test_a_study_that_measured_the_oracle_shows_its_first_sentences(monkeypatch, kind):
    measured, gradients = [], Scoring._gradients
    monkeypatch.setattr(Scoring, "_gradients", lambda self, one: (measured.append(one), gradients(self, one))[1])
    objective = cases.objective(mapnet=network())
    order = np.random.default_rng(1).permutation(12)
    if kind == "compare":
        result = gradvar.compare(objective, ["uniform/disjoint:2"], sentences=5, masks=4, seed=1)
    else:
        result = gradvar.decompose(objective, sentences=5, masks=3, seed=1, headroom=True)
    assert len(measured) == 5
    assert [sentence.datum for sentence in result.tokens.sentences] == order[:3].tolist()
    assert result.tokens.names == ("oracle", "mapnet", "loss", "logit")
    assert "tokens" not in result.to_json()
    assert gradvar.decompose(objective, sentences=5, masks=3, seed=1).tokens is None


def test_progress_counts_the_cells():
    seen = []
    score_tokens(cases.objective(padded=True), [0, 1], progress=lambda *counts: seen.append(counts))
    assert seen == [(2 * 10, 2 * 17), (2 * 17, 2 * 17)]


def test_texts_of_ones_own(tmp_path):
    cases.save_checkpoint(tmp_path / "bert")
    text = cases.write_text(tmp_path / "text.txt", documents=2)
    objective = gradvar.MaskedLM.from_checkpoint(tmp_path / "bert", text, max_length=8, dtype="float64", contexts=1)
    result = score_tokens(objective, ["w1 w2 nothing w3", "w1 w2 w3 w4 w5 w6 w7"])
    first, second = result.sentences
    assert first.tokens == ("[CLS]", "w1", "w2", "[UNK]", "w3", "[SEP]")
    assert first.maskable.tolist() == [False, True, True, False, True, False]
    assert second.tokens == ("[CLS]", *(f"w{i}" for i in range(1, 7)), "[SEP]")
    assert result.notices == ("the text 'w1 w2 w3 w4 w5 w6 w7' has 7 tokens; the first 6 were taken, see --max-length",)
    assert result.provenance["checkpoint_sha256"] == objective.checkpoint_sha256
    assert result.provenance["data"] == "2 texts given"
    loaded, _ = from_texts(tmp_path / "bert", ["w1 w2 nothing w3"], max_length=8, dtype="float64", contexts=1)
    same = score_tokens(loaded, [0]).sentences[0]
    assert same.scores["oracle"] == pytest.approx(first.scores["oracle"], rel=1e-12)
    assert score_tokens(objective, "w1 w2 nothing w3").sentences[0].tokens == first.tokens


def test_an_objective_without_a_checkpoint_needs_the_tokenizer():
    with pytest.raises(GradvarError, match="pass tokenizer="):
        score_tokens(cases.objective(), ["w1 w2"])
    (scored,) = score_tokens(cases.objective(), ["w1 w2"], tokenizer=cases.tokenizer()).sentences
    assert scored.tokens == ("[CLS]", "w1", "w2", "[SEP]")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (0, "--sentences 0: at least 1"),
        (13, "asked for 13 sentences, but the data hold 12; lower --sentences"),
        ([12], "there is no sentence 12; the data hold 0 to 11"),
        ([-1], "there is no sentence -1"),
        ([], "no sentence was chosen"),
    ],
)
def test_what_is_not_there_is_refused(chosen, words):
    with pytest.raises(GradvarError, match=words):
        score_tokens(cases.objective(), chosen)


def test_a_score_that_is_not_finite_is_named():
    objective = cases.objective(mapnet=network())
    with torch.no_grad():
        for parameter in objective.known_scores["mapnet"].network.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(GradvarError, match="the score 'mapnet' of sentence 3 is not finite"):
        score_tokens(objective, [3])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([" \n"], "--text is empty"),
        ([], "there is no text"),
        (["w1", "nothing known"], "'nothing known' holds only tokens that the checkpoint does not know"),
        (["w1 \udcff"], "half a surrogate pair or bytes that are no UTF-8"),
        (["x " * 20 + "w1"], "the first 6 tokens of the text"),
    ],
)
def test_texts_with_nothing_to_mask_are_refused(texts, words):
    with pytest.raises(GradvarError, match=words):
        text_corpus(texts, cases.tokenizer(), 8)


def test_no_room_for_a_text():
    with pytest.raises(GradvarError, match="--max-length 2 leaves no room beside 2 special tokens"):
        text_corpus(["w1"], cases.tokenizer(), 2)


def test_a_long_text_is_quoted_in_short():
    _, (notice,) = text_corpus(["w1 " * 500], cases.tokenizer(), 8)
    assert (
        notice == "the text 'w1 w1 w1 w1 w1 w1 w1 w1 w1 w1…' has 500 tokens; the first 6 were taken, see --max-length"
    )


@pytest.mark.parametrize(
    "vocabulary",
    [
        {"play": " play", "##ing": "ing", "##": " ##"},
        {"\u2581play": " play", "ing": "ing"},
        {"\u0120play": " play", "ing": "ing", "\u00e2\u0122\u013b": "\u2019", "\u00e2\u0122": "\ufffd", "[字]": "[字]"},
    ],
)
def test_tokens_are_written_as_they_stand_in_a_text(vocabulary):
    write = readable(vocabulary)
    assert {token: write(token) for token in vocabulary} == vocabulary


def test_contexts_use_different_corruptions():
    """Otherwise a context more would be no news, and the covering above would prove nothing."""
    objective = cases.objective(contexts=2)
    positions, keys = objective.scoring._covering(objective.sentences([0], 0))
    assert len(torch.unique(keys)) == keys.numel()
    assert not bool((positions[0] == positions[1]).all())
