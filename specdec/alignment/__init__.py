"""Alignment strategies: how one model's batch state stays rectangular while rows advance unevenly."""
