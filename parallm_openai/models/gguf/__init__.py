"""Load GGUF files, the format of llama.cpp, into mlx-lm's models.

`finding` says which file a path means, `reading` reads its header, `architectures` maps its names and metadata to
mlx-lm's, `quantisation` its blocks to arrays, `tokenizer` its vocabulary, and `checkpoint` makes a model of it all.
"""
