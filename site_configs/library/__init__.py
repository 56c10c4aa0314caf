"""Types and functions that the machine files share."""
