"""One point: decode its prompts, record the outputs and resume, in one process or several."""
