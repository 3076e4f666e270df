"""Have Linux keep a model's weights in huge pages.

A CPU reads every weight for every token, in an order that small pages make slow: each address must be looked up
anew. Many distributions give huge pages only to programs that ask for them, and MLX does not.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterable, Iterator

from parallm_openai.cpu import switches

log = logging.getLogger(__name__)

HUGE = 2 * 2**20
# The allocator's own few bytes between two buffers.
LARGEST_GAP = 4096
# From Linux's `mman-common.h`; collapsing needs Linux 6.1.
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25


def collapse(buffers: Iterable[range]) -> None:
    """Put what lies at these addresses into huge pages, as far as it fills whole ones.

    Takes 1 to 2 s a GB. It is advice: nothing breaks if the kernel declines. `PARALLM_HUGE_PAGES=off` switches it off.
    """
    if sys.platform != "linux" or switches.switched_off(switches.HUGE_PAGES) is not None:
        return
    try:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for pages in whole_pages(buffers):
            for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
                madvise(pages.start, len(pages), advice)
    except (OSError, AttributeError) as error:
        log.debug("no huge pages: %s", error)


def whole_pages(buffers: Iterable[range]) -> Iterator[range]:
    """The whole huge pages in the buffers; those that lie next to each other count as one buffer."""
    for joined in _joined(buffers):
        pages = range(-(-joined.start // HUGE) * HUGE, joined.stop // HUGE * HUGE)
        if pages:
            yield pages


def _joined(buffers: Iterable[range]) -> Iterator[range]:
    current = range(0)
    for buffer in sorted(buffers, key=lambda each: each.start):
        if current and buffer.start - current.stop <= LARGEST_GAP:
            current = range(current.start, max(current.stop, buffer.stop))
        else:
            yield current
            current = buffer
    yield current
