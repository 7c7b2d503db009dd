"""Fine-tuning of a checkpoint on the tasks of GLUE, and what it scores there."""
