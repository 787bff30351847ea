"""rlhf: train a language model from human feedback, from the command line."""

__version__ = "0.1.0"
