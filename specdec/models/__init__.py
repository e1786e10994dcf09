"""Models: loading a pair, what an architecture can do, its KV cache, and how forwards are computed."""
