"""What every package uses: rows, prompts, sampling, the clock, metrics, files."""
