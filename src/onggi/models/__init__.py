"""Models: what a name refers to, checkpoints read a tensor at a time, conversion, structure."""
