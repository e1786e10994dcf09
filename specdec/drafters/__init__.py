"""Drafters: how tokens are proposed for the target to verify."""
