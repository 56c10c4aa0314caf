"""The live display, the report page and its figures."""
