"""The experiments are scripts, whose modules find each other in their own folder."""

import sys
from pathlib import Path

EXPERIMENTS = str(Path(__file__).parents[2] / "experiments")
if EXPERIMENTS not in sys.path:
    sys.path.append(EXPERIMENTS)
