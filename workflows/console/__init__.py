"""Command line helpers: exit codes, messages, paths, units."""
