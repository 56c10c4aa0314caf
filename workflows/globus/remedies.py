"""Commands that error messages about Globus name as the remedy."""

from __future__ import annotations

LOGIN = "python workflows/login.py"
