import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gradvar.errors import GradvarError
from gradvar.huggingface.corpus import Corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.masking.corruption import Replacement
from tests import cases

MODEL = cases.model("bert")
TOKENIZER = cases.tokenizer()
LENGTHS = st.lists(st.integers(3, 30), min_size=1, max_size=6)
RATES = st.floats(0.01, 0.99)


def masked_lm(sequences, **options):
    """A masked LM over the given sequences, or over random ones of the given lengths."""
    if isinstance(sequences[0], int):
        corpus = cases.corpus(list(sequences))
    else:
        corpus = Corpus(tuple(np.array(s, dtype=np.int32) for s in sequences), "given", "0" * 64, 32, 1e-3)
    return MaskedLM(MODEL, TOKENIZER, corpus, **options)


def cells_of(objective, data, masks, seed=0):
    """Each cell by (sentence, mask): corrupted ids without padding, and its targets' positions, ids and weights."""
    batch = objective.draw(data, (masks,), seed)
    cells = {}
    for row, (sentence, mask) in enumerate((s, m) for s in data for m in range(masks)):
        used = batch["target_weights"][row] > 0
        length = len(objective.corpus.sequences[sentence])
        cells[sentence, mask] = (
            batch["input_ids"][row, :length].tolist(),
            batch["target_positions"][row, used].tolist(),
            batch["target_ids"][row, used].tolist(),
            batch["target_weights"][row, used].tolist(),
        )
    return cells


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, rate=RATES, seed=st.integers(0, 2**63))
def test_a_cell_has_exactly_k_targets_and_keeps_the_rest(lengths, rate, seed):
    objective = masked_lm(lengths, mask_rate=rate)
    for (sentence, _), (ids, positions, originals, weights) in cells_of(
        objective, list(range(len(lengths))), 3, seed
    ).items():
        original = objective.corpus.sequences[sentence].tolist()
        k = max(1, math.floor(rate * (len(original) - 2) + 0.5))
        assert len(set(positions)) == len(positions) == k
        assert set(positions) <= set(range(1, len(original) - 1))
        assert originals == [original[position] for position in positions]
        assert [ids[i] for i in range(len(ids)) if i not in positions] == [
            original[i] for i in range(len(ids)) if i not in positions
        ]
        assert sum(weights) == pytest.approx(1, abs=1e-12)


def test_special_tokens_inside_a_sentence_are_no_targets():
    sequence = [cases.CLS, 7, cases.UNK, 8, cases.SEP, cases.MASK, 9, cases.PAD, cases.SEP]
    cells = cells_of(masked_lm([sequence], mask_rate=0.9), [0], 50)
    assert {tuple(positions) for _, positions, _, _ in cells.values()} == {(1, 3, 6)}


def test_special_tokens_are_no_random_replacements():
    objective = masked_lm([30] * 10, mask_rate=0.5, replacement=Replacement(0, 1, 0))
    drawn = {ids[p] for ids, positions, _, _ in cells_of(objective, list(range(10)), 30).values() for p in positions}
    assert drawn == set(range(5, 60))


@pytest.mark.parametrize(("parts", "shares"), [((0.8, 0.1, 0.1), (0.8, 0.1, 0.1)), ((0.5, 0, 0.5), (0.5, 0, 0.5))])
def test_replacements_come_in_their_proportions(parts, shares):
    objective = masked_lm([32] * 20, mask_rate=0.5, replacement=Replacement(*parts))
    cells = cells_of(objective, list(range(20)), 40).values()
    pairs = [(ids[p], o) for ids, positions, originals, _ in cells for p, o in zip(positions, originals, strict=True)]
    masked = np.mean([new == cases.MASK for new, _ in pairs])
    kept = np.mean([new == old for new, old in pairs])
    error = 5 / (2 * math.sqrt(len(pairs)))
    assert masked == pytest.approx(shares[0], abs=error)
    assert kept == pytest.approx(shares[2] + shares[1] / 55, abs=error)


@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS, rate=RATES, seed=st.integers(0, 2**63), choose=st.randoms(use_true_random=False))
def test_a_draw_is_a_function_of_seed_sentence_and_mask_alone(lengths, rate, seed, choose):
    objective = masked_lm(lengths, mask_rate=rate)
    everything = list(range(len(lengths)))
    expected = cells_of(objective, everything, 4, seed)
    order = choose.sample(everything, choose.randint(1, len(everything)))
    for data, masks in [(order, 4), (order, 2), *(([sentence], 3) for sentence in everything)]:
        found = cells_of(objective, data, masks, seed)
        assert found == {key: expected[key] for key in found}


def test_padding_changes_no_draw():
    long, short = list(range(5, 35)), list(range(5, 12))
    alone = cells_of(masked_lm([short]), [0], 5)
    beside = cells_of(masked_lm([short, long]), [0, 1], 5)
    assert [beside[0, mask][:2] for mask in range(5)] == [alone[0, mask][:2] for mask in range(5)]


def test_seeds_sentences_and_masks_differ():
    objective = masked_lm([[7] * 30] * 4, mask_rate=0.3)
    cells = [cells_of(objective, [0, 1, 2, 3], 8, seed) for seed in (0, 1, 2**32, 2**40)]
    drawn = {tuple(positions) for cell in cells for _, positions, _, _ in cell.values()}
    assert len(drawn) > 0.97 * 4 * 32


@pytest.mark.parametrize("weighting", ["sentence", "token"])
def test_surplus_slots_weigh_nothing_and_padding_is_masked(weighting):
    lengths = [5, 30, 12]
    batch = masked_lm(lengths, mask_rate=0.5, weighting=weighting).draw([0, 1, 2], (2,), 0)
    counts = torch.tensor([2, 14, 5]).repeat_interleave(2)  # floor(n/2 + 1/2) of 3, 28 and 10
    used = torch.arange(14) < counts.unsqueeze(1)
    assert torch.equal(batch["target_weights"] > 0, used)
    weight = counts.double() / 7 if weighting == "token" else torch.ones(6).double()
    torch.testing.assert_close(batch["target_weights"].sum(dim=1), weight, rtol=1e-12, atol=0)
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 5, 30, 30, 12, 12]
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {cases.PAD}


def test_sentences_of_one_length_need_no_attention_mask():
    assert "attention_mask" not in masked_lm([12, 12]).draw([0, 1], (2,), 0)


def textbook_losses(objective, batch):
    """Weighted mean cross-entropy at the targets, from the logits at every position."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    logits = objective.model(**inputs).logits
    losses = []
    for row, weights in enumerate(batch["target_weights"]):
        terms = [
            weight * F.cross_entropy(logits[row, position], target)
            for weight, position, target in zip(
                weights, batch["target_positions"][row], batch["target_ids"][row], strict=True
            )
        ]
        losses.append(torch.stack(terms).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("weighting", ["sentence", "token"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_losses_are_the_textbook_losses(kind, padded, weighting):
    objective = cases.objective(kind, padded, weighting=weighting)
    batch = objective.draw([0, 5, 3, 1], (3,), 7)
    with torch.no_grad():
        torch.testing.assert_close(objective.losses(batch), textbook_losses(objective, batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_the_loss_of_a_cell_does_not_depend_on_its_neighbours(kind):
    objective = cases.objective(kind, padded=True)
    data = [0, 5, 3, 1]
    with torch.no_grad():
        together = objective.losses(objective.draw(data, (3,), 7))
        alone = torch.cat([objective.losses(objective.draw([sentence], (3,), 7)) for sentence in data])
    assert len({len(objective.corpus.sequences[sentence]) for sentence in data}) > 1
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_dropout_is_off():
    model = cases.model("bert").train()
    objective = MaskedLM(model, TOKENIZER, cases.corpus([12, 12]))
    batch = objective.draw([0, 1], (2,), 0)
    assert not any(module.training for module in model.modules())
    assert torch.equal(objective.losses(batch), objective.losses(batch))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({"mask_rate": rate}, "is not between 0 and 1") for rate in (0, 1, -0.1, float("nan"), float("inf"))),
        ({"weighting": "length"}, "--weighting 'length' is unknown; use sentence or token"),
        ({"sequences": [[2, 5, 3], [2, 3]]}, "sentence 1 of given holds only special tokens"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(GradvarError, match=words):
        masked_lm(**({"sequences": [12]} | options))


def test_it_says_what_it_is(tmp_path):
    folder = cases.save_checkpoint(tmp_path / "checkpoint")
    text = cases.write_text(tmp_path / "a.txt")
    described = MaskedLM.from_checkpoint(folder, text, max_length=16, mask_rate=0.25).describe()
    assert described["study"] == {
        "mask_rate": 0.25,
        "max_length": 16,
        "replacement": [0.8, 0.1, 0.1],
        "weighting": "sentence",
        "population": 120,
    }
    assert described["provenance"]["checkpoint"] == str(folder)
    assert [len(described["provenance"][name]) for name in ("checkpoint_sha256", "data_sha256")] == [64, 64]


EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")
BLOCK = {
    "attention": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    "norm": ("attention.output.LayerNorm", "output.LayerNorm"),
    "mlp": ("intermediate.dense", "output.dense"),
}
CLS = ("predictions", "predictions.transform.dense", "predictions.transform.LayerNorm")
# (where, group): what is there; of the blocks, which are all alike, the first.
GROUPS = {
    "bert": {
        ("bert.embeddings.", "embedding"): EMBEDDINGS,
        ("bert.embeddings.", "norm"): ("LayerNorm",),
        **{("bert.encoder.layer.0.", group): names for group, names in BLOCK.items()},
        ("cls.", "head"): CLS,
    },
    "modernbert": {
        ("model.embeddings.", "embedding"): ("tok_embeddings",),
        ("model.", "norm"): ("embeddings.norm", "layers.0.mlp_norm", "final_norm"),
        ("model.layers.0.", "attention"): ("attn.Wqkv", "attn.Wo"),
        ("model.layers.0.", "mlp"): ("mlp.Wi", "mlp.Wo"),
        ("", "head"): ("head.dense", "head.norm", "decoder"),
    },
    "roberta": {
        ("roberta.embeddings.", "embedding"): EMBEDDINGS,
        ("roberta.embeddings.", "norm"): ("LayerNorm",),
        **{("roberta.encoder.layer.0.", group): names for group, names in BLOCK.items()},
        ("lm_head", "head"): ("", ".dense", ".layer_norm"),
    },
    "distilbert": {
        ("distilbert.embeddings.", "embedding"): EMBEDDINGS[:2],
        ("distilbert.", "norm"): (
            "embeddings.LayerNorm",
            "transformer.layer.0.sa_layer_norm",
            "transformer.layer.0.output_layer_norm",
        ),
        ("distilbert.transformer.layer.0.attention.", "attention"): ("q_lin", "k_lin", "v_lin", "out_lin"),
        ("distilbert.transformer.layer.0.ffn.", "mlp"): ("lin1", "lin2"),
        ("vocab_", "head"): ("transform", "layer_norm", "projector"),
    },
    "albert": {
        ("albert.", "embedding"): (*(f"embeddings.{n}" for n in EMBEDDINGS), "encoder.embedding_hidden_mapping_in"),
        ("albert.embeddings.", "norm"): ("LayerNorm",),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.", "norm"): (
            "full_layer_layer_norm",
            "attention.LayerNorm",
        ),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.attention.", "attention"): (
            "query",
            "key",
            "value",
            "dense",
        ),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.", "mlp"): ("ffn", "ffn_output"),
        ("predictions", "head"): ("", ".dense", ".LayerNorm"),
    },
    "electra": {
        ("electra.", "embedding"): (*(f"embeddings.{name}" for name in EMBEDDINGS), "embeddings_project"),
        ("electra.embeddings.", "norm"): ("LayerNorm",),
        **{("electra.encoder.layer.0.", group): names for group, names in BLOCK.items()},
        ("generator_", "head"): ("predictions.LayerNorm", "predictions.dense", "lm_head"),
    },
    "deberta-v2": {
        ("deberta.", "embedding"): (
            "embeddings.word_embeddings",
            "embeddings.position_embeddings",
            "encoder.rel_embeddings",
        ),
        ("deberta.embeddings.", "norm"): ("LayerNorm",),
        ("deberta.encoder.layer.0.attention.", "attention"): (
            *(f"self.{name}_proj" for name in ("query", "key", "value", "pos_key", "pos_query")),
            "output.dense",
        ),
        ("deberta.encoder.layer.0.", "norm"): BLOCK["norm"],
        ("deberta.encoder.layer.0.", "mlp"): BLOCK["mlp"],
        ("cls.", "head"): CLS,
    },
}


@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
def test_every_layer_has_its_group(kind):
    objective = cases.objective(kind)
    layers = {name.rpartition(".")[0] for name, _ in objective.model.named_parameters()}
    expected = {where + name: group for (where, group), names in GROUPS[kind].items() for name in names}
    first = {layer for layer in layers if "layer.1." not in layer and "layers.1." not in layer}
    assert {layer: objective.layer_group(layer) for layer in first} == expected
    for layer in layers - first:
        alike = layer.replace("layer.1.", "layer.0.").replace("layers.1.", "layers.0.")
        assert objective.layer_group(layer) == expected.get(alike, "norm"), (
            layer
        )  # ModernBERT's first has one norm less


def test_norms_of_other_kinds_are_norms():
    objective = cases.objective("bert")
    objective.model.bert.embeddings.LayerNorm = torch.nn.RMSNorm(16)
    assert objective.layer_group("bert.embeddings.LayerNorm") == "norm"
