"""A `.gguf` file becomes an ordinary Hugging Face folder, once.

Everything in onggi works on safetensors folders: layer by layer, with `transformers` as the model.
Many small models reach people as GGUF only, so the file is dequantised once into bf16 and cached.
`transformers` can read GGUF itself, but it needs most of a minute for 270M parameters (its reader
walks a 262k-entry vocabulary value by value), it returns a model that refuses to be saved, and its
table of metadata leaves gaps that class defaults fill silently: Qwen3's head size, the attention
scale of Gemma's 27B models, every rope scaling, the digits that SmolLM's tokenizer sets apart. What
llama.cpp does with a file is the definition of the file, so each architecture here is written
after llama.cpp's loader and tested against it, and one that is not in `ARCHITECTURES` is refused.

The values are those of the file's own grid (`onggi.json` says which), rounded to bf16: a product
of a 6-bit scale, an fp16 scale and a 4-bit level does not always fit bf16's eight bits. On Gemma 3
270M that rounding is worth 5e-4 nats of KL, and is part of what "the reference" means here.

`container` reads the file, `architectures` says what model its metadata and tensors make, `tokenizer`
does the same for its vocabulary, `folder` writes all of it. The word `gguf` inside these modules is
the library of that name, which knows the grids and the names of tensors.
"""

from .architectures import ARCHITECTURES
from .folder import SHARD_BYTES, convert, read_grid

__all__ = ["ARCHITECTURES", "SHARD_BYTES", "convert", "read_grid"]
