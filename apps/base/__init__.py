"""Errors, files, versions, identities and stop requests: what every other room needs."""
