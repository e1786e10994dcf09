"""The door to lm-evaluation-harness: `python -m specdec.lm_eval run --model specdec --tasks ...`."""
