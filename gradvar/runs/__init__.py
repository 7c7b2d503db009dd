"""Runs side by side: their folders, the arms that they form, and how long each arm takes to a loss."""
