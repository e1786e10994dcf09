"""Executions: how one forward of a model is computed, whatever model, layout and method."""
