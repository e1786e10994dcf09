"""Reference outputs on disk, and whether rounding explains a difference from them."""
