"""Transfer of artifacts to a site and back by Globus Transfer."""
