"""What --check, --check --live and --dry-run look at."""
