"""App calls at a site through Globus Compute."""
