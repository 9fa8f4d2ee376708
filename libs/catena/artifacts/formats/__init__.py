"""Other runtimes' files, both ways: PEFT, MLX and GGUF adapters, transformers and GGUF bases, merging, quantising.

Pure file work in numpy, without torch and without a server. What comes in is converted here and then passes the gate
like anything else; `imports` is the only way in. The `catena` command calls this package.
"""
