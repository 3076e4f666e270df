"""What goes wrong with models as files."""

from __future__ import annotations


class CatalogError(Exception):
    """A model that cannot be fetched, shown or removed, with a sentence a user can act on."""
