"""onggi: a language model through text, quantisation and evaluation, with its cost in each language."""

__version__ = "0.1.0"
