"""Models: loading a pair, checking that it can be run exactly, its KV cache, and how forwards are computed."""
