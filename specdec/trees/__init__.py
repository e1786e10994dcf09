"""Trees: how a drafter that steps by a model spends its nodes: a chain, several paths, a beam."""
