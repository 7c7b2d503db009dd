"""Written and read again, bit for bit; and every way in which files can be wrong."""

import json
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gradvar.errors import GradvarError
from gradvar.mapnet import files
from gradvar.mapnet.network import MapNet
from tests.mapnet import networks


@pytest.fixture
def folder(tmp_path) -> Path:
    networks.fitted().save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def change(folder: Path, part: str | None, **values: object) -> None:
    """Change fields of the configuration file, or of a part of it; None removes them."""
    described = json.loads((folder / files.CONFIG).read_text())
    where = described[part] if part else described
    for name, value in values.items():
        where.pop(name, None)
        if value is not None:
            where[name] = value
    (folder / files.CONFIG).write_text(json.dumps(described))


def replace_weights(folder: Path, packed: bytes) -> None:
    """Put other weights there, with their hash."""
    (folder / files.WEIGHTS).write_bytes(packed)
    change(folder, None, weights_sha256=files._sha256(packed))


@pytest.mark.parametrize("embeddings", networks.EMBEDDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_round_trip_changes_no_bit(tmp_path, embeddings, dtype):
    network = networks.fitted(embeddings, temperature=0.5).to(dtype)
    network.save_pretrained(tmp_path / "a" / "new" / "folder")
    restored = MapNet.from_pretrained(tmp_path / "a" / "new" / "folder")
    assert restored.config == network.config
    assert restored.record == network.record == {"loss": "kl", "exponent": 0.5, "data": {"sha256": "ab"}}
    ours, theirs = network.state_dict(), restored.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    read, attention = networks.inputs(embeddings), networks.everything()
    assert torch.equal(network(read, attention), restored(read, attention))
    restored(read, attention).sum().backward()
    torch.optim.SGD(restored.parameters(), 1.0).step()
    assert not torch.equal(network.head.weight, restored.head.weight)


def test_other_files_stay_and_no_temporary_ones_do(folder, monkeypatch):
    """Temporary ones are on the same file system, from which files can be renamed."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    (folder / "config.json").write_text("the encoder's")
    networks.fitted(width=12).save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", files.CONFIG, files.WEIGHTS]
    assert MapNet.from_pretrained(folder).config.width == 12


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), torch.ones(1)])
def test_a_record_that_is_not_json_writes_nothing(tmp_path, value):
    network = networks.fitted()
    network.record["value"] = value
    with pytest.raises(GradvarError, match=r"a MAPNet's record must be plain JSON \(.*\); convert it first"):
        network.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GradvarError, match=r"file cannot be written \(File exists\); give another folder"):
        networks.fitted().save_pretrained(tmp_path / "file")


def test_an_interrupted_save_leaves_the_old_one(folder, monkeypatch):
    """The new files are whole before the first takes its place; no temporary ones stay."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(GradvarError, match="No space left on device"):
        networks.fitted(width=12).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def truncate(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def flip(folder: Path) -> None:
    packed = bytearray((folder / files.WEIGHTS).read_bytes())
    packed[-1] ^= 1
    (folder / files.WEIGHTS).write_bytes(packed)


def unreadable(folder: Path) -> None:
    (folder / files.WEIGHTS).unlink()
    (folder / files.WEIGHTS).mkdir()


def without_head(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / files.WEIGHTS)
    del weights["head.bias"]
    replace_weights(folder, safetensors.torch.save(weights))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove(files.CONFIG), "holds no MAPNet: it has no mapnet.json; give a folder that MapNet.save_pretrained"),
        (remove(files.WEIGHTS), "holds no MAPNet: it has no mapnet.safetensors; give a folder that"),
        (unreadable, "mapnet.safetensors cannot be read (Is a directory); check the file"),
        (truncate(files.CONFIG), "mapnet.json is damaged, or not a MAPNet's; copy both files again"),
        (lambda f: (f / files.CONFIG).write_bytes(b"\xff"), "mapnet.json is damaged, or not a MAPNet's; copy both"),
        (lambda f: (f / files.CONFIG).write_text("[]"), "mapnet.json is damaged, or not a MAPNet's; copy both"),
        (lambda f: change(f, None, schema="gradvar/mapnet/v2"),
         "mapnet.json is of schema 'gradvar/mapnet/v2', not 'gradvar/mapnet/v1'; use the gradvar that wrote it,"),
        (lambda f: change(f, None, record=None), "mapnet.json lacks a part of gradvar/mapnet/v1 ('record'); copy both"),
        (lambda f: change(f, None, config="x"), "mapnet.json lacks a part of gradvar/mapnet/v1 ("),
        (truncate(files.WEIGHTS), "mapnet.safetensors is damaged, or of another MAPNet than mapnet.json; copy both"),
        (flip, "mapnet.safetensors is damaged, or of another MAPNet than mapnet.json; copy both files again"),
        (lambda f: replace_weights(f, b"pickle"), "mapnet.safetensors is no safetensors file; copy both files again"),
        (lambda f: change(f, "config", width=None, depth=3), "mapnet.json describes no MAPNet ("),
        (lambda f: change(f, "config", heads=3), "mapnet.json describes no MAPNet (a MAPNet's width of 8 cannot be"),
        (lambda f: change(f, "config", width=12), "mapnet.safetensors has [12, 8] for 'context.weight' where "
                                                  "mapnet.json asks for [12, 12]; copy both files again"),
        (lambda f: change(f, "config", layers=1), "has [8] for 'layers.1.attention_norm.bias' where mapnet.json asks "
                                                  "for no tensor; copy both files again"),
        (without_head, "has no tensor for 'head.bias' where mapnet.json asks for [1]; copy both files again"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(folder, damage, message):
    damage(folder)
    with pytest.raises(GradvarError) as error:
        MapNet.from_pretrained(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_no_such_folder(tmp_path):
    for path in (tmp_path / "nothing", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(GradvarError, match=f"no MAPNet at '{path}': no such folder; give one that"):
            MapNet.from_pretrained(path)
