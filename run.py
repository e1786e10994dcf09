"""Decode prompts with a model pair: ``python run.py --help`` lists every setting."""

from specdec.cli import main

if __name__ == "__main__":
    main()
