"""Types and rules that the machine files share."""
