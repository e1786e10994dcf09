"""Loggers: where figures are sent besides the run folder."""
