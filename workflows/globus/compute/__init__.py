"""Calls of apps at a site through Globus Compute."""
