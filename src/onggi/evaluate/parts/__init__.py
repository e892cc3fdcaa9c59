"""The parts of an evaluation: each adds what it finds of every model to an `Evaluation`."""
