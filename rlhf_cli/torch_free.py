"""Commands that need no torch: it is hidden from libraries that would import it."""

from __future__ import annotations

import os
import sys


def hide_torch() -> None:
    """Make torch impossible to import in this process, unless it is imported already.

    transformers imports torch, which takes seconds, wherever it finds it; without torch its
    tokenizers are the same. It decides once, so this comes before the first import of transformers,
    and only in a process that needs no model.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    # None is how Python marks a module that is not there, for imports and for find_spec
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch
