"""The checks behind --check, --check --live and --dry-run."""
