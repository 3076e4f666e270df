"""The environment variables that switch the parts of this package off."""

from __future__ import annotations

import logging
import os

BLAS = "PARALLM_BLAS"
SINGLE_ROWS = "PARALLM_SINGLE_ROWS"
COMPILER = "PARALLM_COMPILER"
HUGE_PAGES = "PARALLM_HUGE_PAGES"

ON = ("", "1", "on", "yes", "true")
OFF = ("0", "off", "no", "false", "none")

log = logging.getLogger(__name__)


def switched_off(variable: str) -> str | None:
    """The variable and its value, if that switches a part off; None if the part is to be used."""
    value = os.environ.get(variable, "").strip()
    if value.lower() in OFF:
        return f"{variable}={value}"
    if value.lower() not in ON:
        log.warning("%s=%s is neither on nor off; it counts as on", variable, value)
    return None
