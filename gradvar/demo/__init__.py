"""The checkpoint and text that ship with gradvar, so that its main job runs on a fresh machine."""

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent / "checkpoint"
DEMO_TEXT = Path(__file__).parent / "secret-garden.txt"
