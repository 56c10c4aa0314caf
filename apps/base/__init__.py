"""Errors, files, versions, identities, processes and stop requests: what every other room needs."""
