"""App calls at a site behind Globus Compute."""
