"""Verify budgets: how much of each row's draft is verified."""
