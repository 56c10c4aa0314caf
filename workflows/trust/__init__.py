"""What a driver believes of the sites: requests as text, and the check of every answer."""
