"""What a run needs: exact tensor bytes, what the CUDA allocator makes of them, and resident memory."""
