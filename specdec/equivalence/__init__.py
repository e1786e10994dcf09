"""Reference outputs on disk, and whether a difference from them is explained by rounding."""
