"""Simulated online serving: requests arrive over time, and each turn of a conversation follows the previous answer."""
