"""Who said it, and what a site allows."""
