"""Calls of the apps at a site behind Globus Compute."""
