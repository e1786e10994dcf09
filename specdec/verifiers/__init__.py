"""Verifiers: how many drafted tokens are kept, and which token follows them."""
