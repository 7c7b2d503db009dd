"""Per-cell gradient statistics in one backward pass, and the slow reference. Knows modules, no masks."""
