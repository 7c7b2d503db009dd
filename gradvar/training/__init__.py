"""Pretraining with any proposal of masks: data, the joint model, the trainer, and what watches it."""
