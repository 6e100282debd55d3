"""A task's examples: splits, tokens and batches."""
