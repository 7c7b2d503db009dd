"""Take over the finished units of another folder of CSVs, such as one that comes back from a machine with a GPU.

python experiments/gather.py FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ledger
import regimes
import settings

from gradvar import GradvarError


def main() -> None:
    """Take over what is not done here, experiment by experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the other folder")
    parser.add_argument("--figures", type=Path, default=regimes.HERE.parent / "figures", help="the folder that takes")
    args = parser.parse_args()
    found = sorted(args.folder.glob("*.provenance.csv"))
    if not found:
        raise GradvarError(f"{args.folder} holds no NAME.provenance.csv; give a folder that --figures wrote")
    for path in found:
        name = path.name.replace(".provenance", "")
        taken = ledger.Ledger(args.figures / name).take(ledger.Ledger(args.folder / name))
        print(f"{name}: {taken} units taken over")


if __name__ == "__main__":
    settings.cleanly(main)
