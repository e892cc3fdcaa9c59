"""Evaluation: what a model scores in each language, and what it lost against its reference."""
