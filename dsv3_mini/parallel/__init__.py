"""Training beyond one device (§3.2), with PyTorch's own parts, under `torchrun`: see `mesh` for how the work is cut."""
