"""How masks are drawn: hashing, position sampling and token corruption. Knows tensors, no model."""
