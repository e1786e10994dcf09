"""What a draft says of the children of one node: how they came to be. Imports no torch.

A verifier that compares probabilities must know it, because its rule holds for one kind of siblings and is biased for
another; so every drafter declares a kind, and every verifier the kinds that it can judge.
"""

CHAIN = "chain"
"""One child per node: drawn from the draft's distribution, or chosen where the draft has no probabilities."""

IID = "iid"
"""Independent draws of the node's distribution; tokens drawn twice are one node (``Draft.draws`` keeps the repeats)."""

WITHOUT_REPLACEMENT = "without_replacement"
"""An ordered sample without replacement: each child is drawn from the distribution without the children before it."""

BEAM = "beam"
"""The same, where perturbed values across the tree decide which children are kept (stochastic beam search)."""

CHOSEN = "chosen"
"""By any rule that draws nothing: the most probable tokens, a lookup. There are no probabilities to compare with."""

KINDS = (CHAIN, IID, WITHOUT_REPLACEMENT, BEAM, CHOSEN)
