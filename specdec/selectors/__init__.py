"""Selectors: which shape each row's tree takes in a round, chosen before its nodes are drawn."""
