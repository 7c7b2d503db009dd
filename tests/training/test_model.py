import random
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from gradvar import checkpoints
from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import load_checkpoint
from gradvar.training.model import build_encoder
from gradvar.training.recipe import Model
from tests import cases

TOKENIZER = cases.tokenizer()
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "max_position_embeddings": 32}
BERT = SIZES | {"intermediate_size": 24}
OWN = {  # DistilBERT's names for the common sizes are others, too
    "distilbert": {"hidden_dim": 24},
    "albert": {"intermediate_size": 24, "embedding_size": 8},
    "electra": {"intermediate_size": 24, "embedding_size": 8},
    # What DeBERTa's code reads but its configuration class does not list.
    "deberta-v2": {"intermediate_size": 24, "relative_attention": True, "position_buckets": 8},
}


def scratch(kind="bert", config=BERT, max_length=12, seed=3, tokenizer=TOKENIZER):
    return build_encoder(Model(architecture=kind, config=config), tokenizer, max_length, seed)


def loaded(folder, max_length=12, seed=3, tokenizer=TOKENIZER):
    return build_encoder(Model(source=str(folder)), tokenizer, max_length, seed)


def sizes(kind):
    return SIZES | OWN.get(kind, {"intermediate_size": 24})


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return cases.save_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def headless(saved, tmp_path_factory):
    """The same encoder without its masked-LM head."""
    folder = tmp_path_factory.mktemp("headless")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("bert.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
def test_every_architecture_is_made_from_scratch(kind):
    """Knowing nothing, it is about as good as guessing: weights have a deviation of 0.02."""
    model = scratch(kind, sizes(kind)).eval()
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ids = torch.arange(5, 15)[None]
    logits = model(input_ids=ids).logits
    assert logits.shape == (1, 10, len(TOKENIZER))
    assert abs(cross_entropy(logits[0], ids[0]).item() - np.log(len(TOKENIZER))) < 0.5


@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
def test_vocabulary_and_special_tokens_are_the_tokenizers(kind):
    config = scratch(kind, sizes(kind)).config
    ids = (config.vocab_size, config.pad_token_id, config.bos_token_id, config.eos_token_id)
    assert ids == (60, cases.PAD, cases.CLS, cases.SEP)


@pytest.mark.parametrize("kind", cases.ARCHITECTURES)
def test_what_was_made_can_be_saved_and_loaded(kind, tmp_path):
    model = scratch(kind, sizes(kind))
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert same(found.model, model)
    assert same(loaded(tmp_path), model)


def test_a_seed_gives_its_weights_and_another_seed_others():
    torch.manual_seed(5)
    one = scratch(seed=1)
    torch.manual_seed(6)
    assert same(one, scratch(seed=1))
    assert not same(one, scratch(seed=2))


def test_a_fresh_head_is_the_seeds(headless):
    torch.manual_seed(5)
    one = loaded(headless, seed=1)
    torch.manual_seed(6)
    assert same(one, loaded(headless, seed=1))
    assert not same(one, loaded(headless, seed=2))


@pytest.fixture(params=["scratch", "checkpoint", "headless"])
def make(request, saved, headless):
    return {"scratch": scratch, "checkpoint": lambda: loaded(saved), "headless": lambda: loaded(headless)}[
        request.param
    ]


def test_no_other_random_number_depends_on_it(make):
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    make()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_it_is_to_be_trained(make):
    """On the CPU, in float32, with dropout, and nothing frozen."""
    model = make()
    assert all(module.training for module in model.modules())
    assert {(p.device.type, p.dtype, p.requires_grad) for p in model.parameters()} == {("cpu", torch.float32, True)}


def test_a_checkpoint_keeps_its_weights(saved):
    assert same(loaded(saved), cases.model("bert").float())


def test_a_run_stands_for_its_last_whole_checkpoint(saved, tmp_path):
    for step in (9, 10):
        checkpoints.prepare(checkpoints.staging_of(tmp_path))
        shutil.copytree(saved, checkpoints.folder_of(checkpoints.staging_of(tmp_path), step))
        checkpoints.publish(checkpoints.staging_of(tmp_path), tmp_path, step)
    (tmp_path / "checkpoint-10" / "config.json").unlink()
    assert same(loaded(tmp_path), loaded(saved))


def test_an_encoder_without_a_head_keeps_its_weights_and_gets_a_fresh_head(headless):
    found, expected = loaded(headless).state_dict(), cases.model("bert").float().state_dict()
    kept = {name for name in found if torch.equal(found[name], expected[name])}
    assert {name for name in found if name.startswith("bert.")} <= kept
    head = found["cls.predictions.transform.dense.weight"]
    assert "cls.predictions.transform.dense.weight" not in kept
    assert 0.01 < float(head.std()) < 0.03  # as BERT begins: a normal deviation of 0.02, of 256 weights
    assert torch.equal(found["cls.predictions.decoder.weight"], found["bert.embeddings.word_embeddings.weight"])


@pytest.mark.parametrize("size", [60, 64])
def test_an_embedding_may_have_more_rows_than_the_vocabulary(size):
    """Multiples of eight are faster."""
    assert scratch(config=BERT | {"vocab_size": size}).get_input_embeddings().num_embeddings == size


@pytest.mark.parametrize(("kind", "longest"), [("bert", 32), ("modernbert", 32), ("roberta", 31)])
def test_sequences_fit_the_positions(kind, longest):
    """RoBERTa's begin after the padding's."""
    model = scratch(kind, sizes(kind), max_length=longest)
    assert model(input_ids=torch.full((1, longest), 7)).logits.shape == (1, longest, 60)
    words = f"data.max_length {longest + 1} is beyond the {longest} positions of the model; lower it, or raise "
    assert words + "model.config.max_position_embeddings" == refusal(scratch, kind, sizes(kind), longest + 1)


def test_a_checkpoints_positions_cannot_be_raised(saved):
    message = refusal(loaded, saved, 33)
    assert "data.max_length 33 is beyond the 32 positions of the model; lower it" in message
    assert "model.config" not in message


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("bertt", {}, "model.architecture 'bertt' has no masked LM; did you mean 'bert'? there are albert, "),
        ("", {}, "model.architecture '' has no masked LM; there are albert, "),
        ("gpt2", {}, "model.architecture 'gpt2' has no masked LM"),
        (
            "bart",
            {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
            "'bart'",
        ),  # predicts the next token, too, and so is refused as a checkpoint
        ("bert", BERT | {"is_decoder": True}, "is_decoder"),  # the same
        (
            "bert",
            BERT | {"hidden_szie": 16},
            "model.config has no key 'hidden_szie' for 'bert'; did you mean 'hidden_size'?",
        ),
        ("distilbert", {"n_layer": 2}, "no key 'n_layer' for 'distilbert'; did you mean 'n_layers'?"),
        ("bert", BERT | {"hidden_size": 15}, "model.config makes no 'bert' (The hidden size (15) is not a multiple"),
        ("bert", BERT | {"hidden_size": "big"}, "expected int, got str"),
        ("bert", BERT | {"hidden_act": "gelo"}, "model.config makes no 'bert' (it does not know 'gelo'); correct it"),
        (
            "modernbert",
            SIZES | {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},  # a sentence that is a KeyError
            "model.config makes no 'modernbert' (Missing required keys in `rope_parameters`",
        ),
        (
            "bert",
            BERT | {"pad_token_id": 100},
            "model.config makes no 'bert' (Padding_idx must be within num_embeddings)",
        ),
        ("bert", BERT | {"vocab_size": 59}, "vocab_size"),  # the tokenizer has 60
    ],
)
def test_what_makes_no_model_is_refused(kind, config, words):
    assert words in refusal(scratch, kind, config)


def swapped():
    vocabulary = TOKENIZER.get_vocab()
    vocabulary["w3"], vocabulary["w4"] = vocabulary["w4"], vocabulary["w3"]
    return transformers.BertTokenizerFast(vocab=vocabulary, model_max_length=512)


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (cases.tokenizer(54), "(59 tokens) is not that of {folder} (60; 'w54' differs)"),
        (cases.tokenizer(56), "(61 tokens) is not that of {folder} (60; 'a token' differs)"),
        (swapped(), "(60 tokens) is not that of {folder} (60; 'w"),
    ],
    ids=["fewer", "more", "swapped"],
)
def test_a_checkpoint_with_another_vocabulary_is_refused(saved, tokenizer, words):
    message = refusal(loaded, saved, tokenizer=tokenizer)
    assert f"the vocabulary of the data {words.format(folder=saved)}" in message
    assert "leave data.tokenizer out to take the checkpoint's" in message


def test_no_checkpoint_is_refused(tmp_path):
    assert "no checkpoint at" in refusal(loaded, tmp_path / "nowhere")
    assert "has no config.json" in refusal(loaded, tmp_path)


def refusal(make, *args, **kwargs):
    with pytest.raises(GradvarError) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_is_not_filled_with_what_the_library_makes_of_it():
    spec = Model(architecture="modernbert", config={"hidden_size": 16, "num_attention_heads": 2, "rope_parameters": {}})
    build_encoder(spec, cases.tokenizer(), 12, 0)
    assert spec.config["rope_parameters"] == {}
