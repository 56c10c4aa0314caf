"""Sites that are reached through Globus: work by Globus Compute, files by Globus Transfer."""
