"""Loggers: where figures go beside the run folder."""
