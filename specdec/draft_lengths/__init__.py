"""Draft-length policies: how many tokens each row drafts in a round."""
