"""`rlhf runs`: list run folders with stage, status, steps, main metric and size."""

from __future__ import annotations
