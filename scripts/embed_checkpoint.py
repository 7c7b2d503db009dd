"""Put the end of a run into `gradvar/demo/checkpoint`: weights in 16 bits, tokenizer, MAPNet, and how they came about.

The demo text (public domain) is never trained on. TRAIN and VALID: one article after another, a paragraph a line, blank
lines between articles.

    gradvar train recipes/demo.yaml --data TRAIN data.valid=VALID --out runs/demo
    python scripts/embed_checkpoint.py --run runs/demo --out gradvar/demo/checkpoint
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from gradvar import checkpoints
from gradvar.checkpoints import STATE
from gradvar.mapnet.files import CONFIG
from gradvar.mapnet.network import MapNet
from gradvar.metrics import read_metrics

KEPT = ("loss", "eval_loss", "eval_loss_se", "exponent", "epsilon", "tokens", "seconds")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    last = checkpoints.last_whole(args.run)
    if last is None:
        raise SystemExit(f"{args.run} holds no whole checkpoint")
    model = AutoModelForMaskedLM.from_pretrained(last, dtype=torch.float16)
    model.save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(last / name, args.out / name)
    state = json.loads((last / STATE).read_text())
    recipe = state["recipe"]
    # Which file it was says the hash, and the path nothing to anyone.
    for place, name in ((recipe["data"], "train"), (recipe["data"], "valid"), (recipe["model"], "source")):
        place[name] = place[name] and Path(place[name]).name
    if (last / CONFIG).exists():
        MapNet.from_pretrained(last).save_pretrained(args.out)
    history = [
        {"step": line["step"]} | {name: round(line[name], 5) for name in KEPT if name in line}
        for line in read_metrics(args.run)
        if "eval_loss" in line or any(name.startswith("variance/") for name in line)
    ]
    record = {"recipe": recipe, "data_sha256": state["data_sha256"], "tokens": state["tokens"]}
    record |= {"seconds": round(state["elapsed"]), "skipped_steps": state["skipped"], "history": history}
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
