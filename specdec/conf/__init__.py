"""Config groups of specdec, read by Hydra as pkg://specdec.conf."""
