"""Quantisation: second moments of the inputs, the solver, calibration that treats languages equally."""
