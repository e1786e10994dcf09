"""Executions: how a forward of a model is computed, independent of layout and method."""
