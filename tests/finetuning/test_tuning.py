"""One fine-tuning: what reaches the Trainer, and what ends it."""

from dataclasses import replace

import pytest
from transformers import AutoModelForMaskedLM

from gradvar.errors import GradvarError
from gradvar.finetuning import tuning
from gradvar.finetuning.metrics import sampling_error
from gradvar.finetuning.reading import read_task
from gradvar.finetuning.tasks import TASKS
from gradvar.finetuning.tuning import FinetuneSettings, encode, tune
from tests import cases
from tests.finetuning import files

STEP = FinetuneSettings(epochs=0.1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    for name in ("rte", "mnli"):
        files.write(place, name)
    cases.save_checkpoint(place / "bert")
    return place


@pytest.fixture
def tuned(place):
    """Fine-tune, by default for one step of RTE."""

    def call(settings=STEP, task="rte", checkpoint=place / "bert", **options):
        prepared = encode(read_task(TASKS[task], str(place)), cases.tokenizer(), 32)
        return tune(checkpoint, cases.tokenizer(), prepared, settings, 0, cpu=True, **options)

    return call


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_visible_gpus_do_not_change_the_batch(tuned, monkeypatch, gpus):
    class Seen(tuning.TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self.device  # noqa: B018  # counts the GPUs
            self._n_gpu = gpus

    monkeypatch.setattr(tuning, "TrainingArguments", Seen)
    assert tuned(replace(STEP, epochs=1, batch=16)).steps == 64 / 16


def test_weight_decay_reaches_the_optimizer(tuned, monkeypatch):
    seen = []

    class Seen(tuning._Watched):
        def train(self):
            found = super().train()
            seen.extend((group["weight_decay"], len(group["params"])) for group in self.optimizer.param_groups)
            return found

    monkeypatch.setattr(tuning, "_Watched", Seen)
    tuned(replace(STEP, weight_decay=0.3))
    (decay, matrices), (none, others) = seen
    assert (decay, none) == (0.3, 0.0)
    assert min(matrices, others) > 10


def test_a_loss_that_is_not_finite_ends_training(tuned):
    steps = []
    with pytest.raises(GradvarError, match="rte, seed 0: the loss is not finite; lower --learning-rate"):
        tuned(FinetuneSettings(epochs=20, learning_rate=1e30), progress=steps.append)
    assert len(steps) < 5  # of 40


def test_a_model_that_knows_no_second_text(tuned, tmp_path):
    config = cases.config("bert", 60, 16, True, "sdpa")
    config.type_vocab_size = 1
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    assert tuned(checkpoint=tmp_path).steps == 1


def test_the_sampling_error_of_two_parts(tuned, monkeypatch):
    """That of the mean of two independent scores."""
    found = []

    def kept(*arguments):
        found.append(sampling_error(*arguments))
        return found[-1]

    monkeypatch.setattr(tuning, "sampling_error", kept)
    result = tuned(task="mnli")
    assert list(result.metrics) == ["accuracy_matched", "accuracy_mismatched"]
    one, other = found
    assert result.sampling_error == pytest.approx((one**2 + other**2) ** 0.5 / 2)
