import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from gradvar.errors import GradvarError
from gradvar.huggingface.checkpoint import load_checkpoint
from gradvar.huggingface.masked_lm import MaskedLM
from tests import cases

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return {kind: cases.save_checkpoint(tmp_path_factory.mktemp(kind), kind) for kind in ("bert", "modernbert")}


@pytest.fixture
def folder(saved, tmp_path):
    """A BERT checkpoint for a test to damage."""
    return shutil.copytree(saved["bert"], tmp_path / "checkpoint")


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_checkpoint_loads_as_saved(saved, kind):
    loaded = load_checkpoint(saved[kind])
    expected = cases.model(kind).float().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    assert (loaded.model.training, loaded.max_length, loaded.tokenizer.mask_token_id) == (False, 32, cases.MASK)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_load_in_the_dtype_asked_for(folder, stored, dtype):
    change_weights(folder, lambda weights: {name: value.to(stored) for name, value in weights.items()})
    weights = load_file(folder / WEIGHTS)
    model = load_checkpoint(folder, dtype=dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(model.state_dict()[name], weights[name].to(getattr(torch, dtype)))


def test_float32_is_the_default(folder):
    change_weights(folder, lambda weights: {name: value.half() for name, value in weights.items()})
    assert next(load_checkpoint(folder).model.parameters()).dtype == torch.float32


def test_plain_pickled_weights_load(folder, saved):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    expected = load_checkpoint(saved["bert"]).model.state_dict()
    found = load_checkpoint(folder).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sharded_weights_load(folder, saved):
    cases.model("bert").float().save_pretrained(folder / "shards", max_shard_size="8KB")
    (folder / WEIGHTS).unlink()
    for file in (folder / "shards").glob("model*"):
        file.rename(folder / file.name)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    expected = load_checkpoint(saved["bert"]).model.state_dict()
    found = load_checkpoint(folder).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_configuration_may_leave_out_defaults(folder):
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    edit_json(folder / "config.json", max_position_embeddings=None)
    assert load_checkpoint(folder).max_length == 512


class Malicious:
    """Pickled, it creates a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=4))])
def test_a_malicious_pickle_is_refused_and_never_run(folder, tmp_path, recwarn, write):
    (folder / WEIGHTS).unlink()
    write({"weight": Malicious(tmp_path / "touched")}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin does not load with weights_only" in refusal(folder)
    assert not (tmp_path / "touched").exists()
    assert not recwarn.list
    pickle.loads(pickle.dumps(Malicious(tmp_path / "touched")))  # it would have worked
    assert (tmp_path / "touched").exists()


def edit_json(path, **changes):
    """Set fields; None removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def contents(name, text):
    return lambda folder: (folder / name).write_text(text)


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def change_weights(folder, change):
    weights = change(load_file(folder / WEIGHTS))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})


def truncate(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def index(text):
    def change(folder):
        (folder / WEIGHTS).unlink()
        (folder / f"{WEIGHTS}.index.json").write_text(text)

    return change


def save(build):
    """Save another model into the folder."""
    return lambda folder: build().save_pretrained(folder)


def gpt2():
    special = {"bos_token_id": 2, "eos_token_id": 3}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=60, n_embd=8, n_layer=1, n_head=1, n_positions=32, **special)
    )


def encoder(kind="bert"):
    build = transformers.BertModel if kind == "bert" else transformers.ModernBertModel
    torch.manual_seed(3)
    return build(cases.model(kind).config)


def without_mask_token(folder):
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]").save_pretrained(folder)


BAD = {
    "no config.json": (remove("config.json"), "has no config.json; give a folder"),
    "broken config.json": (contents("config.json", "{oops"), "config.json is not a model configuration"),
    "binary config.json": (lambda f: (f / "config.json").write_bytes(b"\xff\0"), "is not a model configuration"),
    "config.json is a list": (contents("config.json", "[]"), "config.json is not a model configuration"),
    "no model type": (config(model_type=None), "config.json is not a model configuration (no 'model_type')"),
    "model type is a list": (config(model_type=["bert"]), "is of architecture"),
    "architectures is a number": (config(architectures=5), "config.json is not a model configuration"),
    "wrong type in config.json": (config(hidden_size="wide"), "the configuration in hidden_size expected int"),
    "impossible config.json": (config(hidden_size=17), "the model in does not load (The hidden size (17)"),
    "other vocabulary": (config(vocab_size=61), "weight word_embeddings has not the shape that config.json says"),
    "more layers": (config(num_hidden_layers=3), "weights lack 'bert.encoder.layer.2. not for this model"),
    "no weights": (remove(WEIGHTS), "holds no weights (model.safetensors or pytorch_model.bin)"),
    "empty weights": (contents(WEIGHTS, ""), "the model in does not load copy or save it again"),
    "truncated weights": (truncate, "the model in does not load copy or save it again"),
    "pointer for weights": (contents(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), "does not load copy"),
    "missing shard": (
        index('{"weight_map": {"a": "model-1.safetensors"}}'),
        "model-1.safetensors is missing index.json",
    ),
    "index is no JSON": (index("{oops"), "index.json is not a weight index"),
    "index is a list": (index("[]"), "index.json is not a weight index"),
    "index names no file": (index('{"weight_map": {"a": 3}}'), "index.json is not a weight index"),
    "causal LM": (save(gpt2), "is a causal LM (GPT2LMHeadModel); gradvar needs a masked LM"),
    "decoder": (config(is_decoder=True), "is a causal LM"),
    "LM head": (config(architectures=["BertLMHeadModel"]), "is a causal LM (BertLMHeadModel)"),
    "other architecture": (
        config(model_type="vit"),
        "is of architecture 'vit', which transformers knows no masked LM of",
    ),
    "unknown architecture": (config(model_type="eliza"), "is of architecture 'eliza', which transformers knows no"),
    "encoder-decoder": (config(model_type="bart", architectures=None), "is an encoder-decoder ('bart')"),
    "no head": (save(encoder), "has no masked-LM head ('cls.predictions.bias' is missing); --allow-random-head"),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "has no tokenizer; tokenizer.save_pretrained"),
    "broken tokenizer": (contents("tokenizer.json", "{"), "the tokenizer in does not load copy or save it again"),
    "no mask token": (without_mask_token, "the tokenizer in has no mask token"),
    "larger tokenizer": (lambda f: cases.tokenizer(80).save_pretrained(f), "has 85 tokens, the model 60"),
}


@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD)
def test_a_bad_folder_is_refused_in_one_line(folder, recwarn, damage, words):
    damage(folder)
    recwarn.clear()
    message = refusal(folder)
    assert str(folder) in message
    assert [word for word in words.split() if word not in message] == []
    assert not recwarn.list


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("nowhere/checkpoint", {}, "no checkpoint at 'nowhere/checkpoint': no such folder"),
        ("./nowhere", {}, "no checkpoint at './nowhere': no such folder; give a folder"),
        ("org/name/deeper", {}, "no such folder; give a folder"),
        ("x" * 300, {}, "no such folder"),
        ("{folder}/config.json", {}, "is a file; give the folder that holds config.json"),
        ("{folder}", {"dtype": "float16"}, "--dtype 'float16' is unknown; use float32 or float64"),
        ("{folder}", {"device": "abacus"}, "--device 'abacus' is unknown; use cpu"),
        ("{folder}", {"device": "meta"}, "--device 'meta' is not supported; use cpu or cuda"),
        ("{folder}", {"device": "cuda"}, "--device 'cuda': torch sees 0 CUDA devices; use --device cpu"),
        ("{folder}", {"device": "cuda:1"}, "--device 'cuda:1': torch sees 0 CUDA devices"),
    ],
)
def test_what_was_asked_for_is_named(saved, monkeypatch, tmp_path, source, options, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert words in refusal(source.format(folder=saved["bert"]), **options)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_random_head_is_given_on_request_and_always_the_same(folder, kind):
    encoder(kind).save_pretrained(folder)
    first, second = (load_checkpoint(folder, allow_random_head=True).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    expected = encoder(kind).state_dict()
    prefix = "bert." if kind == "bert" else "model."
    assert all(torch.equal(first[prefix + name], value) for name, value in expected.items() if "pooler" not in name)


def test_a_random_head_does_not_excuse_a_missing_encoder(folder):
    edit_json(folder / "config.json", num_hidden_layers=3)
    assert "weights lack 'bert.encoder.layer.2." in refusal(folder, allow_random_head=True)


@pytest.mark.parametrize(("kind", "key"), [("bert", "bert.encoder.layer.1."), ("modernbert", "model.layers.1.")])
def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(saved, tmp_path, kind, key):
    folder = shutil.copytree(saved[kind], tmp_path / "cut")
    changes = {"layer_types": ["full_attention"]} if kind == "modernbert" else {}
    edit_json(folder / "config.json", num_hidden_layers=1, **changes)
    assert f"no place for weight '{key}" in refusal(folder)


def test_loading_leaves_the_libraries_as_they_were(folder):
    library = transformers.logging
    before = library.get_verbosity()
    library.set_verbosity_info()
    load_checkpoint(folder)
    found = library.get_verbosity()
    library.set_verbosity(before)
    assert (found, library.is_progress_bar_enabled()) == (library.INFO, True)


def test_a_length_beyond_the_model_is_refused(saved, tmp_path):
    text = cases.write_text(tmp_path / "a.txt")
    with pytest.raises(GradvarError, match="--max-length 33 is beyond the 32 positions of"):
        MaskedLM.from_checkpoint(saved["bert"], text, max_length=33)


def test_the_hash_is_that_of_the_weights_and_the_configuration(saved, folder):
    original = load_checkpoint(saved["bert"]).sha256
    assert load_checkpoint(folder).sha256 == original
    edit_json(folder / "config.json", note="changed")
    configured = load_checkpoint(folder).sha256
    change_weights(folder, lambda weights: {name: value + 1 for name, value in weights.items()})
    assert len({original, configured, load_checkpoint(folder).sha256}) == 3


def refusal(source, **options):
    with pytest.raises(GradvarError) as caught:
        load_checkpoint(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
