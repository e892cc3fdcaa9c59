"""onggi: a language model through text, quantisation and evaluation, with its cost in each language."""

import logging

__version__ = "0.1.0"

# transformers and peft import it where it is installed; it tells of kernels that nothing here needs, and at every matrix
# that it computes in 16 bits.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
