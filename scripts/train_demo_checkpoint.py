"""Train the checkpoint that ships in `gradvar/demo`: a 4-layer ModernBERT on English Wikipedia.

The demo text (public domain) is never trained on. Files: one article after another, a paragraph a line,
blank lines between articles. Writes a Hugging Face folder with 16-bit weights and `training.json`.

    python scripts/train_demo_checkpoint.py --train wiki-train.txt.xz --valid wiki-valid.txt.xz --out demo-checkpoint

With `--start FOLDER` it goes on from a checkpoint, with its tokenizer and a schedule of its own; so the one of
docs/field.md that was trained further was made:

    python scripts/train_demo_checkpoint.py --start gradvar/demo/checkpoint --train wiki-train.txt.xz \
        --valid wiki-valid.txt.xz --steps 8000 --learning-rate 1e-3 --seed 1 --out further
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast, ModernBertConfig, ModernBertForMaskedLM

from gradvar.huggingface.checkpoint import load_checkpoint
from gradvar.huggingface.corpus import load_corpus
from gradvar.huggingface.masked_lm import MaskedLM
from gradvar.huggingface.reading import read_rows


def train_tokenizer(documents: tuple[tuple[str, ...], ...], size: int, out: Path) -> BertTokenizerFast:
    """Train a lower-casing WordPiece vocabulary."""
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator((p for d in documents for p in d), vocab_size=size, min_frequency=2)
    out.mkdir(parents=True, exist_ok=True)
    pieces.save(str(out / "tokenizer.json"))
    tokenizer = BertTokenizerFast(tokenizer_file=str(out / "tokenizer.json"), do_lower_case=True, model_max_length=512)
    tokenizer.save_pretrained(out)
    return tokenizer


def new_model(tokenizer: BertTokenizerFast) -> ModernBertForMaskedLM:
    """Make the model that is trained, with random weights."""
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return ModernBertForMaskedLM(config)


def validation_loss(objective: MaskedLM, sentences: int) -> float:
    """Mean loss under fixed masks, in nats a target."""
    with torch.no_grad():
        data = range(min(sentences, len(objective)))
        losses = [objective.losses(objective.draw(data[i : i + 32], (1,), seed=1)) for i in range(0, len(data), 32)]
    return float(torch.cat(losses).mean())


def main() -> None:
    """Train, reporting held-out loss as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="checkpoint to go on from")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    if args.start:
        checkpoint = load_checkpoint(args.start)
        model, tokenizer = checkpoint.model, checkpoint.tokenizer
        tokenizer.save_pretrained(args.out)
    else:
        tokenizer = train_tokenizer(read_rows(args.train).documents or (), 8192, args.out)
        model = new_model(tokenizer)
    train = MaskedLM(model, tokenizer, load_corpus(args.train, tokenizer))
    valid = MaskedLM(model, tokenizer, load_corpus(args.valid, tokenizer))
    print(f"{train.corpus}; {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
    )
    warmup = args.steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, s - warmup) / (args.steps - warmup))),
    )
    order = np.random.default_rng(args.seed)
    queue: list[int] = []
    start = time.perf_counter()
    history = []
    for step in range(args.steps):
        if len(queue) < args.batch:
            queue = order.permutation(len(train)).tolist()
        batch, queue = queue[: args.batch], queue[args.batch :]
        loss = train.losses(train.draw(batch, (1,), seed=step)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            row = {"step": step + 1, "loss": float(loss.detach()), "valid": validation_loss(valid, 512)}
            history.append(row)
            print(row, f"{time.perf_counter() - start:.0f} s", flush=True)
    model.half().save_pretrained(args.out)
    record = {
        "start": str(args.start) if args.start else None,
        "steps": args.steps,
        "batch": args.batch,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "train_sha256": train.corpus.sha256,
        "valid_sha256": valid.corpus.sha256,
        "seconds": round(time.perf_counter() - start),
        "history": history,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
