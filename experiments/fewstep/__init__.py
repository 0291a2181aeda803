"""Quality against evaluations, for everything that makes samples in few steps."""
