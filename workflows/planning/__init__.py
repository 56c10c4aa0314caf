"""From a campaign file to a checked plan."""
