"""Loading a masked-LM checkpoint, with every refusal made before a library can answer misleadingly."""

import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradvar import checkpoints
from gradvar.errors import GradvarError

DTYPES = {"float32": torch.float32, "float64": torch.float64}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded masked LM.

    Attributes:
        model: ``AutoModelForMaskedLM`` in evaluation mode.
        tokenizer: Its tokenizer.
        folder: Where it lies.
        sha256: Hash of the configuration and the weight files.
        max_length: Longest sequence that the model takes.
    """

    model: nn.Module
    tokenizer: Any
    folder: Path
    sha256: str
    max_length: int


def load_checkpoint(
    source: str | Path, *, dtype: str = "float32", device: str = "cpu", allow_random_head: bool = False, seed: int = 0
) -> Checkpoint:
    """Load a masked LM and its tokenizer from a folder, or from the hub where there is a network.

    Args:
        source: A folder as ``save_pretrained`` writes it, a run's folder, or a hub name; see :func:`locate`.
        dtype: ``float32`` or ``float64``, whatever the file holds.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        allow_random_head: Accept a checkpoint without a masked-LM head; it gets a random one.
        seed: Of the random one.

    Returns:
        The checkpoint.

    Raises:
        GradvarError: If it is missing, is no masked LM, is incomplete, or is of an unsupported architecture.
    """
    if dtype not in DTYPES:
        raise GradvarError(f"--dtype '{dtype}' is unknown; use {' or '.join(DTYPES)}")
    where = resolve_device(device)
    folder = locate(source)
    check_config(folder)
    weights = weight_files(folder)

    from transformers import AutoConfig, AutoModelForMaskedLM

    with quiet():
        attempt(folder, "configuration", lambda: AutoConfig.from_pretrained(folder, local_files_only=True))
        tokenizer = tokenizer_of(folder)
        torch.manual_seed(seed)
        model, report = attempt(
            folder,
            "model",
            lambda: AutoModelForMaskedLM.from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are reported
            ),
        )
    _check_loading(folder, model, report, allow_random_head)
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        raise GradvarError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocabulary}; they do not match"
        )
    model = model.to(where).eval()
    return Checkpoint(model, tokenizer, folder, digest_of(weights), longest_sequence(model, tokenizer))


def tokenizer_of(folder: Path) -> Any:
    """Load a tokenizer.

    Args:
        folder: Where ``save_pretrained`` wrote it.

    Returns:
        The tokenizer, which has a mask token.

    Raises:
        GradvarError: If there is none, or it has no mask token.
    """
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise GradvarError(f"{folder} has no tokenizer; save it there with tokenizer.save_pretrained('{folder}')")
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = attempt(folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True))
    for how in ("is_local", "local_files_only"):  # it was loaded, which is nothing to save
        tokenizer.init_kwargs.pop(how, None)
    if tokenizer.mask_token_id is None:
        raise GradvarError(f"the tokenizer in {folder} has no mask token; a masked LM needs one")
    return tokenizer


def longest_sequence(model: nn.Module, tokenizer: Any) -> int:
    """Longest sequence that a model takes, by its tokenizer and its position embeddings.

    Models that keep a padding row among their position embeddings (RoBERTa's family) count positions from the
    row after it, and have that many fewer.
    """
    config: Any = model.config
    longest = [int(tokenizer.model_max_length), int(getattr(config, "max_position_embeddings", 0) or 2**31)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None:
            longest.append(module.num_embeddings - module.padding_idx - 1)
    return min(longest)


def resolve_device(name: str) -> torch.device:
    """Parse a device name and check that it is there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise GradvarError(f"--device '{name}' is unknown; use cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise GradvarError(f"--device '{name}' is not supported; use cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GradvarError(f"--device '{name}': torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def locate(source: str | Path, option: str = "--checkpoint") -> Path:
    """Find the folder of a checkpoint, on disk or through the hub.

    Args:
        source: A folder as ``save_pretrained`` writes it, a run's folder, which stands for its last whole checkpoint,
            or a hub name.
        option: What the user calls it.

    Returns:
        The folder.

    Raises:
        GradvarError: If there is none.
    """
    path = Path(source)
    if os.path.isdir(path):  # unlike Path.is_dir, no error where the name is too long
        if (path / "config.json").exists():
            return path
        last = checkpoints.last_whole(path)
        if last is None and any(path.glob(f"{checkpoints.PREFIX}*")):
            raise GradvarError(f"{option} {source}: no checkpoint of this run is whole; give another one")
        return last or path
    if os.path.exists(path):
        raise GradvarError(f"{option} {source} is a file; give the folder that holds config.json and the weights")
    missing = f"no checkpoint at '{source}': no such folder"
    if not _HUB_NAME.fullmatch(str(source)):
        raise GradvarError(f"{missing}; give a folder that save_pretrained wrote")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "model*.safetensors"]
    with quiet():
        try:
            return Path(snapshot_download(str(source), allow_patterns=patterns))
        except Exception as error:  # the library raises dozens of types here, all meaning "not to be had"
            raise GradvarError(
                f"{missing}, and the hub cannot be asked or does not have it; give {option} a folder"
            ) from error


def check_config(folder: Path) -> str:
    """Read config.json and refuse what is no supported masked LM.

    Args:
        folder: Of the checkpoint.

    Returns:
        Its model type.

    Raises:
        GradvarError: If it is none.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise GradvarError(f"{folder} has no config.json; give a folder that save_pretrained wrote")
    try:
        config = json.loads(path.read_text())
        kind = str(config["model_type"])
        architectures = [str(name) for name in config.get("architectures") or []]
    except (ValueError, LookupError, TypeError) as error:
        raise GradvarError(
            f"{path} is not a model configuration (no 'model_type'); is it a transformers model?"
        ) from error
    if config.get("is_decoder") or any("CausalLM" in a or "LMHead" in a for a in architectures) or _is_causal(kind):
        raise GradvarError(f"{folder} is a causal LM ({', '.join(architectures) or kind}); gradvar needs a masked LM")
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise GradvarError(f"{folder} is of architecture '{kind}', which transformers knows no masked LM of")
    if config.get("is_encoder_decoder") or "ConditionalGeneration" in MODEL_FOR_MASKED_LM_MAPPING_NAMES[kind]:
        raise GradvarError(
            f"{folder} is an encoder-decoder ('{kind}'), which predicts the next token; give a masked LM"
        )
    return kind


def _is_causal(kind: str) -> bool:
    """Whether transformers knows this architecture as a causal LM only."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def weight_files(folder: Path) -> list[Path]:
    """List the configuration and weight files, and refuse pickles that need arbitrary code.

    Args:
        folder: Of the checkpoint.

    Returns:
        Their paths.

    Raises:
        GradvarError: If there are none, or one of them is missing or no plain weights.
    """
    kind = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if kind is None:
        raise GradvarError(
            f"{folder} holds no weights ({_WEIGHTS[0]} or {_WEIGHTS[2]}); save them with save_pretrained"
        )
    if kind.endswith(".index.json"):
        try:
            names = sorted(set(json.loads((folder / kind).read_text())["weight_map"].values()))
            files = [folder / name for name in names]
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise GradvarError(f"{folder / kind} is not a weight index; copy the whole checkpoint again") from error
    else:
        files = [folder / kind]
    for file in files:
        if not file.is_file():
            raise GradvarError(f"{file} is missing, but {kind} names it; copy the whole checkpoint")
        if file.suffix == ".bin":
            try:
                with warnings.catch_warnings(action="ignore"):
                    torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # pickle raises whatever the file makes it raise
                raise GradvarError(
                    f"{file} does not load with weights_only=True, so it is no plain weights; convert it to safetensors"
                ) from error
    return [folder / "config.json", *files]


def attempt(folder: Path, what: str, load: Any) -> Any:
    """Run a library's loader; its failure becomes one line.

    Args:
        folder: Where it loads from.
        what: What it loads, for the message.
        load: The loader.

    Returns:
        What it returns.

    Raises:
        GradvarError: If it fails.
    """
    try:
        return load()
    except GradvarError:
        raise
    except Exception as error:  # safetensors, json, tokenizers and transformers raise unrelated types
        raise GradvarError(
            f"the {what} in {folder} does not load ({one_line(error)}); copy or save it again"
        ) from error


def one_line(error: Exception) -> str:
    """Return what an error says, up to the first line that does not end in a colon."""
    said: list[str] = []
    for line in str(error).split("\n"):
        said += line.split()
        if said and not said[-1].endswith(":"):
            break
    return " ".join(said) or type(error).__name__


def check_body(folder: Path, model: Any, report: dict[str, Any], fresh: str = "(?!)") -> None:
    """Refuse weights that have not the shapes of a model, or are of layers that it does not have.

    Args:
        folder: Where they come from.
        model: The model.
        report: What ``from_pretrained`` says of loading.
        fresh: Names of parameters, as a regular expression, that may have other shapes: they are made anew.

    Raises:
        GradvarError: If there are some.
    """
    mismatched = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in report["mismatched_keys"])
    mismatched = [key for key in mismatched if not re.match(fresh, key)]
    if mismatched:
        raise GradvarError(f"{folder}: weight '{mismatched[0]}' has not the shape that config.json says")
    body = re.compile(rf"{model.base_model_prefix}\.(encoder|layers|transformer)\.")
    surplus = sorted(key for key in report["unexpected_keys"] if body.match(key))
    if surplus:
        raise GradvarError(
            f"{folder}: config.json has no place for weight '{surplus[0]}' ({len(surplus)} such); restore the right one"
        )


def _check_loading(folder: Path, model: Any, report: dict[str, Any], allow_random_head: bool) -> None:
    """Refuse weights that do not fill the model."""
    check_body(folder, model, report)
    missing = sorted(report["missing_keys"])
    encoder = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
    if encoder:
        raise GradvarError(
            f"{folder}: weights lack '{encoder[0]}' ({len(encoder)} missing); they are not for this model"
        )
    if missing and not allow_random_head:
        raise GradvarError(
            f"{folder} has no masked-LM head ('{missing[0]}' is missing); --allow-random-head gives it a random one"
        )


def digest_of(files: list[Path]) -> str:
    """Hash the contents of files."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and warnings off the terminal."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
            enable_progress_bars()
