"""One point: decode its prompts, record them, resume, on one process or several."""
