"""The machine that cells share: leases of memory and of GPUs."""
