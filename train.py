"""Train a built-in pair from scratch: ``python train.py pair=tiny`` (``rehearse=true`` for a quick try)."""

from specdec.cli.train import main

if __name__ == "__main__":
    main()
