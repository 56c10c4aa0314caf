"""The 256 nodes of Perlmutter whose four A100 have 80 GB each; everything else is as in ``perlmutter.py``."""

from __future__ import annotations

from functools import partial

from site_configs import perlmutter

site = partial(perlmutter.site, constraint="gpu&hbm80g")
