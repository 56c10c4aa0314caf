"""What can be wrong with a site."""

from __future__ import annotations


class SiteConfigError(ValueError):
    """The site cannot be made as asked; the text says why and what would do."""
