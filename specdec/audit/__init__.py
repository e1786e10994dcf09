"""Outputs of any engine, judged by the oracle: `python -m specdec.audit outputs.jsonl --target FOLDER`."""
