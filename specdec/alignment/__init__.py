"""Alignment strategies: how one model's batch stays rectangular while its rows advance unevenly."""
