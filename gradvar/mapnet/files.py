"""The two files of a MAPNet: ``mapnet.json``, its shape and how it was fitted, and ``mapnet.safetensors``, its weights.

Their names are not those of an encoder's files, so that both can lie in one folder.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from gradvar.errors import GradvarError

SCHEMA = "gradvar/mapnet/v1"
CONFIG, WEIGHTS = "mapnet.json", "mapnet.safetensors"


@dataclass(frozen=True)
class Saved:
    """What the files hold.

    Attributes:
        config: The fields of :class:`gradvar.mapnet.network.MapNetConfig`.
        record: How the network was fitted.
        weights: Its tensors by name, on the CPU.
    """

    config: dict[str, Any]
    record: dict[str, Any]
    weights: dict[str, Tensor]


def write(folder: Path, config: Mapping[str, Any], record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write both files under temporary names, then rename them.

    The configuration names the weights by their hash and takes its place last, so that two files of different
    networks, after an interruption or a careless copy, are told from one network.

    Args:
        folder: It is made if it is not there.
        config: See :class:`Saved`.
        record: Plain JSON.
        weights: See :class:`Saved`; on any device.

    Raises:
        GradvarError: If the record is not plain JSON, or if the folder cannot be written.
    """
    packed = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    described = {"schema": SCHEMA, "config": config, "record": record, "weights_sha256": _sha256(packed)}
    try:
        text = json.dumps(described, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise GradvarError(f"a MAPNet's record must be plain JSON ({error}); convert it first") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mapnet-", dir=folder) as temporary:
            (Path(temporary) / WEIGHTS).write_bytes(packed)
            (Path(temporary) / CONFIG).write_text(text, encoding="utf-8")
            for name in (WEIGHTS, CONFIG):
                (Path(temporary) / name).replace(folder / name)
    except OSError as error:
        raise GradvarError(f"{folder} cannot be written ({error.strerror}); give another folder") from error


def read(folder: Path) -> Saved:
    """Read both files.

    Args:
        folder: Where :func:`write` wrote them.

    Returns:
        What they hold.

    Raises:
        GradvarError: If one is missing, damaged, of another version, or of another network than the other.
    """
    if not folder.is_dir():
        raise GradvarError(f"no MAPNet at '{folder}': no such folder; give one that MapNet.save_pretrained wrote")
    try:
        text, packed = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise GradvarError(
            f"{folder} holds no MAPNet: it has no {Path(error.filename).name}; give a folder that "
            "MapNet.save_pretrained wrote"
        ) from error
    except OSError as error:
        raise GradvarError(f"{error.filename} cannot be read ({error.strerror}); check the file") from error
    config, record, sha256 = _parse(folder / CONFIG, text)
    if _sha256(packed) != sha256:
        raise GradvarError(f"{folder / WEIGHTS} is damaged, or of another MAPNet than {CONFIG}; copy both files again")
    try:
        weights = safetensors.torch.load(packed)
    except Exception as error:  # it has an exception of its own, and lets those of torch and struct through
        raise GradvarError(f"{folder / WEIGHTS} is no safetensors file; copy both files again") from error
    return Saved(config, record, weights)


def check_weights(folder: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not those of the network that ``mapnet.json`` describes.

    Args:
        folder: For the message.
        weights: As read.
        expected: The network's own, of which only names and shapes matter.

    Raises:
        GradvarError: If names or shapes differ.
    """
    for name in sorted({*weights, *expected}):
        found, wanted = (str(list(own[name].shape)) if name in own else "no tensor" for own in (weights, expected))
        if found != wanted:
            raise GradvarError(
                f"{folder / WEIGHTS} has {found} for '{name}' where {CONFIG} asks for {wanted}; copy both files again"
            )


def _parse(path: Path, text: bytes) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Read ``(config, record, hash of the weights)``."""
    try:
        found = json.loads(text)
        schema = found["schema"]
    except (ValueError, LookupError, TypeError) as error:
        raise GradvarError(f"{path} is damaged, or not a MAPNet's; copy both files again") from error
    if schema != SCHEMA:
        raise GradvarError(
            f"{path} is of schema '{schema}', not '{SCHEMA}'; use the gradvar that wrote it, or fit anew"
        )
    try:
        return dict(found["config"]), dict(found["record"]), str(found["weights_sha256"])
    except (ValueError, LookupError, TypeError) as error:
        raise GradvarError(f"{path} lacks a part of {SCHEMA} ({error}); copy both files again") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
