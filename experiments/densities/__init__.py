"""What the experiments on densities over manifolds share: the two fits, and kernel densities."""
