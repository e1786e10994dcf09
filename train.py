"""Train: ``python train.py pair=tiny`` (the built-in pair from scratch) or ``task=lm``, ``distill``, ``heads``."""

from specdec.cli.train import main

RECIPES = {"tiny": "experiments.tiny_pair.recipe:train_tiny"}

if __name__ == "__main__":
    main(RECIPES)
