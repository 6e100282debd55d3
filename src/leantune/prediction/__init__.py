"""Memory, FLOPs and cost of a training step without a GPU and without weights."""
