"""The bundled model pair: a small target and a smaller draft, trained by `demo_training/` of the repository.

Importing this module costs nothing: it only says where the files are.
"""

from __future__ import annotations

from pathlib import Path

MODEL_ID = "parallm-demo"
TARGET_PATH = Path(__file__).resolve().parent / "target"
DRAFT_PATH = Path(__file__).resolve().parent / "draft"

__all__ = ["DRAFT_PATH", "MODEL_ID", "TARGET_PATH"]
