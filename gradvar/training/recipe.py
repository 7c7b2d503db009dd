"""What a run is made of: sections of named values, each with a default where there is a sensible one."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from typing_extensions import TypedDict  # pydantic reads no other one before Python 3.12

from gradvar.errors import GradvarError
from gradvar.mapnet.config import COOLEST, Embeddings, default_config
from gradvar.masking.corruption import Replacement
from gradvar.masking.epochs import EpochStratified
from gradvar.masking.proposal import LATER, Proposal, parse_proposal
from gradvar.masking.scores import is_counted
from gradvar.training.schedule import Schedule, Written, check_lengths, scheduled

if TYPE_CHECKING:
    from torch import Tensor

    from gradvar.masking.masks import Sentences
    from gradvar.masking.scores import Task


def _whole(value: Any) -> Any:
    """Take 1e9 for a whole number, which YAML takes for text; and true for none."""
    if isinstance(value, bool):
        raise ValueError("input should be a whole number")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> Any:
    """Take true for no number."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1)]
Length = Annotated[Whole, Field(ge=3)]
Share = Annotated[float, Field(gt=0, lt=1), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]


class Section(BaseModel):
    """Values by name; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Tokenizer(Section):
    """The vocabulary: trained on the training text, or taken from a folder.

    Attributes:
        source: Folder of a tokenizer, or a hub name; None trains a WordPiece vocabulary.
        vocabulary: Tokens of the trained one at most, special ones and letters included: where there is no room for
            all letters, the rarest are unknown.
        lowercase: Whether the trained one folds case.
    """

    source: str | None = None
    vocabulary: Annotated[Whole, Field(ge=100)] = 8192
    lowercase: bool = True


class Data(Section):
    """Text, and how it becomes sequences.

    Attributes:
        train: File of the training text, or a hub data set.
        valid: File of the held-out text; None takes some documents of the training text.
        valid_share: Share of the documents that are held out then.
        max_length: Tokens of a sequence, special tokens included.
        pack: Join the paragraphs of a document and cut them; otherwise a line is a sequence.
        streaming: Read the training text as it is needed, over and over, instead of tokenising it beforehand; it takes
            a held-out text and a vocabulary of their own.
        block: Sequences of a stream that are shuffled together, and held in memory.
        tokenizer: The vocabulary.
    """

    train: str | None = None
    valid: str | None = None
    valid_share: Share = 0.02
    max_length: Length = 128
    pack: bool = True
    streaming: bool = False
    block: Count = 10_000
    tokenizer: Tokenizer = Tokenizer()

    @model_validator(mode="after")
    def _held_out(self) -> Data:
        if self.streaming and self.valid is None:
            raise ValueError("'streaming' takes a held-out text of its own; give data.valid")
        return self


class Model(Section):
    """The encoder: an architecture from scratch, or a checkpoint to go on from.

    Attributes:
        architecture: Name of a `transformers` model type that has a masked LM.
        config: Fields of its configuration; vocabulary and special tokens follow from the tokenizer.
        source: Folder of a checkpoint, or a hub name; an encoder without a masked-LM head gets a fresh one.
    """

    architecture: str | None = None
    config: dict[str, Any] = {}
    source: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Model:
        if (self.architecture is None) == (self.source is None):
            raise ValueError("give 'architecture' (from scratch) or 'source' (a checkpoint), one of the two")
        if self.source is not None and self.config:
            raise ValueError("'config' belongs to an architecture from scratch; a checkpoint has its own")
        return self


class Masking(Section):
    """How masks are chosen.

    Attributes:
        proposal: ``score/design``, see ``gradvar compare``, or ``uniform/epoch-stratified``.
        mask_rate: Share of the maskable positions that are targets, or its schedule:
            ``{linear: {0: 0.3, 1: 0.15}}`` or ``{steps: {0: 0.3, 0.5: 0.15}}``, by the share of the budget.
        replacement: Percentages of the mask token, of random tokens, of tokens that stay.
        masks: Masks of a sentence in one step; None takes those of one draw, which is one but for ``disjoint:K``.
        weighting: ``sentence``, or ``token``: cells weighted by their targets.
        contexts: Contexts of measured scores, such as ``oracle``.
    """

    proposal: str = "uniform/simple"
    mask_rate: Annotated[float | Schedule, scheduled(Share), Written] = 0.15
    replacement: tuple[NotNegative, NotNegative, NotNegative] = (80, 10, 10)
    masks: Count | None = None
    weighting: Literal["sentence", "token"] = "sentence"
    contexts: Count = 2

    @model_validator(mode="after")
    def _possible(self) -> Masking:
        Replacement(*(p / 100 for p in self.replacement))
        masks_of(self)
        if isinstance(self.mask_rate, Schedule):
            proposal = proposal_of(self)
            if proposal.mask_rate is not None:
                raise ValueError(f"{self.proposal} has a mask rate of its own; leave '@' or the schedule out")
            if isinstance(proposal.design, EpochStratified):
                raise ValueError(f"mask_rate: the masks of {self.proposal} are of one size; give a number")
        return self


def masks_of(masking: Masking) -> int:
    """Count the masks of a sentence in one step.

    Args:
        masking: How masks are chosen.

    Returns:
        Masks.

    Raises:
        GradvarError: If there is no such proposal, or they are no multiple of the masks of one draw.
    """
    together = proposal_of(masking).design.cells
    masks = masking.masks or together
    if masks % together:
        raise GradvarError(
            f"masking.masks {masks} is no multiple of the {together} masks of one draw of {masking.proposal}"
        )
    return masks


def proposal_of(masking: Masking) -> Proposal:
    """Read the proposal of a run, whose MAPNet is not there yet."""
    return parse_proposal(masking.proposal, {name: _Unfitted(name) for name in LATER})


@dataclass(frozen=True)
class _Unfitted:
    """The name of a score whose network is not there yet."""

    name: str

    def __call__(self, sentences: Sentences, task: Task) -> Tensor:
        """Score nothing."""
        raise GradvarError(f"{self.name} has no network yet")

    def __str__(self) -> str:
        """Name the score."""
        return self.name


class Shape(TypedDict, total=False):
    """Fields of :class:`gradvar.mapnet.config.MapNetConfig` that do not follow from the encoder; a plain dict."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    embeddings: Embeddings
    width: Count
    window: Count
    layers: Count
    heads: Count
    feed_forward: Count
    temperature: Annotated[float, BeforeValidator(_number), Field(ge=COOLEST, allow_inf_nan=False)]


class MapNetTraining(Section):
    """The MAPNet of a run, where the proposal's score is ``mapnet`` or ``mapnet-permuted``.

    Attributes:
        target: ``logit``, free with every step, or ``gradient``: true norms, measured every so many steps.
        every: Steps between two measurements of true norms; 1 for ``logit``.
        loss: ``variance``, ``kl`` or ``log-regression``; see :mod:`gradvar.mapnet.losses`.
        weight: Of its loss beside the encoder's: of account for clipping and ``into_encoder``; Adam is blind to it.
        learning_rate: Its own; the schedule is the encoder's.
        weight_decay: Its own.
        calibrate_every: Steps between two looks of the online calibration, which sets exponent and epsilon unless the
            proposal gives one of them; with true norms it looks whenever they are measured.
        into_encoder: Let its gradient into the encoder's token embeddings.
        shape: Fields of :class:`gradvar.mapnet.config.MapNetConfig`, see :class:`Shape`; the width is what a tenth of
            the encoder affords.
    """

    target: Literal["logit", "gradient"] = "logit"
    every: Count = 1
    loss: Literal["variance", "kl", "log-regression"] = "variance"
    weight: Positive = 1.0
    learning_rate: Positive = 4e-3
    weight_decay: NotNegative = 0.05
    calibrate_every: Count = 8
    into_encoder: bool = False
    shape: Shape = {}

    @field_validator("shape")
    @classmethod
    def _possible(cls, shape: Shape) -> Shape:
        default_config(1, 1, inf, 1, **shape)  # beside an encoder that affords every width
        return shape

    @model_validator(mode="after")
    def _free(self) -> MapNetTraining:
        if self.target == "logit" and self.every != 1:
            raise ValueError("'every' belongs to target: gradient; logit norms come with every step")
        return self


Decay = Literal[
    "cosine", "linear", "polynomial", "inverse_sqrt", "cosine_with_restarts", "constant_with_warmup", "constant"
]


class Training(Section):
    """The optimisation.

    Attributes:
        steps: Budget in optimizer steps; give one of the three budgets.
        tokens: Budget in tokens that the model is shown, special ones included, each mask anew.
        seconds: Budget in seconds of training.
        batch: Cells of a step, of all processes and micro-batches together: sentences times their masks.
        accumulation: Micro-batches of a step on each process.
        max_length: Tokens of a sequence as it is shown, or their schedule, ``{steps: {0: 16, 0.9: 128}}``, by the share
            of a budget in steps or tokens: longer sequences are cut into pieces, of which a step sees as many more.
            None for those of the data.
        learning_rate: Peak.
        schedule: Of the learning rate, one of those of `transformers` that need no further numbers; it follows the
            budget.
        warmup: Share of the budget in which the learning rate rises.
        weight_decay: Of matrices; biases and norms have none.
        betas: Of AdamW.
        clip: Largest gradient norm of the encoder, and by itself of the MAPNet; 0 does not clip.
        bf16: Mixed precision.
        compile: Compile the encoder.
        fsdp: ``full_shard`` shares parameters, gradients and optimizer out among GPUs; ``shard_grad_op`` does, too, but
            keeps the layers whole between a forward pass and its backward pass.
        workers: Processes that load data.
    """

    steps: Count | None = None
    tokens: Count | None = None
    seconds: Positive | None = None
    batch: Count = 32
    accumulation: Count = 1
    max_length: Annotated[int | Schedule, scheduled(Length), Written] | None = None
    learning_rate: Positive = 1e-3
    schedule: Decay = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: NotNegative = 0.01
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    clip: NotNegative = 1.0
    bf16: bool = False
    compile: bool = False
    fsdp: Literal["full_shard", "shard_grad_op"] | None = None
    workers: Annotated[Whole, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_budget(self) -> Training:
        if sum(x is not None for x in (self.steps, self.tokens, self.seconds)) != 1:
            raise ValueError("give one budget: 'steps', 'tokens' or 'seconds'")
        check_lengths(self.max_length, self.seconds)
        return self


class Evaluation(Section):
    """Held-out loss under fixed uniform masks of 15 %, whatever the training masks are.

    Attributes:
        every: Steps between two; None for the end alone.
        sentences: How many held-out sentences; all, if there are fewer.
        masks: Masks of each.
        batch: Cells at once.
    """

    every: Count | None = 500
    sentences: Annotated[Whole, Field(ge=2)] = 512
    masks: Count = 1
    batch: Count = 64


class Watch(Section):
    """The gradient variance of the live model.

    Attributes:
        every: Steps between two looks; None for none.
        sentences: Held-out sentences of a look.
        masks: Masks of each.
        contexts: Contexts of the gradients of single positions, which the ceilings and the MAPNet's worth take.
    """

    every: Count | None = None
    sentences: Annotated[Whole, Field(ge=8)] = 16
    masks: Annotated[Whole, Field(ge=4)] = 4
    contexts: Annotated[Whole, Field(ge=2)] = 2


class Saving(Section):
    """Checkpoints and logs.

    Attributes:
        every: Steps between two checkpoints; None for the end alone.
        keep: How many are kept, the latest.
        log_every: Steps between two lines of `metrics.jsonl`.
        loggers: Names of `transformers` loggers beside `metrics.jsonl`, such as ``tensorboard`` or ``wandb``.
    """

    every: Count | None = 500
    keep: Count = 2
    log_every: Count = 50
    loggers: tuple[str, ...] = ("tensorboard",)


class Recipe(Section):
    """A whole run.

    Attributes:
        seed: Of everything random.
        data: The text.
        model: The encoder.
        masking: The masks.
        mapnet: The MAPNet.
        training: The optimisation.
        evaluation: The held-out loss.
        watch: The gradient variance.
        saving: Checkpoints and logs.
    """

    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0
    data: Data = Data()
    model: Model
    masking: Masking = Masking()
    mapnet: MapNetTraining = MapNetTraining()
    training: Training
    evaluation: Evaluation = Evaluation()
    watch: Watch = Watch()
    saving: Saving = Saving()

    @model_validator(mode="after")
    def _short_enough(self) -> Recipe:
        if self.training.max_length is not None:
            given = self.training.max_length
            longest = max(given.values) if isinstance(given, Schedule) else given
            if longest > self.data.max_length:
                raise ValueError(
                    f"training.max_length {longest} is more than the {self.data.max_length} tokens of the data's "
                    "sequences; raise data.max_length, or lower it"
                )
        return self

    @model_validator(mode="after")
    def _streamable(self) -> Recipe:
        if not self.data.streaming:
            return self
        if self.data.tokenizer.source is None and self.model.source is None:
            raise ValueError(
                "a text that is streamed trains no vocabulary; give data.tokenizer.source, such as another run's folder"
            )
        text, weighting, proposal = self.masking.proposal, self.masking.weighting, proposal_of(self.masking)
        counted = is_counted(proposal.score) or proposal.design.cells > 1
        for what, wrong in ((f"weighting '{weighting}'", weighting == "token"), (f"proposal {text}", counted)):
            if wrong:
                raise ValueError(
                    f"masking.{what} takes a pass over all text beforehand, so the text cannot be streamed; set "
                    "data.streaming to false, or choose another one"
                )
        return self

    @model_validator(mode="after")
    def _whole_sentences(self) -> Recipe:
        cells, masks = self.training.batch // self.training.accumulation, masks_of(self.masking)
        if self.training.batch % self.training.accumulation or cells % masks:
            raise ValueError(
                f"training.batch {self.training.batch} is no multiple of {self.training.accumulation} micro-batches "
                f"times {masks} masks of a sentence; give one that is"
            )
        return self
