"""Files that set up the endpoints of a site."""
