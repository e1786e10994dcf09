"""Nouns that every room uses: rows, prompts, sampling, the clock, metrics, files."""
