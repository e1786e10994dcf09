"""Schedulers: which rows run in the next round, and the order in which prompts are admitted."""
