"""What a training step takes: live tensors, the CUDA allocator and path, host memory, clocks."""
