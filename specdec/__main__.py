"""``python -m specdec``: the same as ``run.py``, from any folder."""

from specdec.cli import main

if __name__ == "__main__":
    main()
