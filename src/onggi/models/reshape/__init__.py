"""Other shapes of a model: fewer layers, heads and columns, more layers, a smaller vocabulary.

`importance` measures what each part does in each language, `select` chooses what is kept, `vocabulary` which
tokens, and `shape` writes the tensors of that choice under the config that goes with it.
"""
