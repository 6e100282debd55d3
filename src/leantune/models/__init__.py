"""Task models with their weights or without, and exported checkpoints."""
