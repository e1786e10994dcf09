"""Presets and defaults of the config groups (YAML), which Hydra reads as pkg://specdec.conf."""
