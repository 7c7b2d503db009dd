"""Everything that knows Hugging Face: checkpoints, tokenizers, and the masked-LM objective."""
