"""Artifacts to a site and back through Globus Transfer."""
