"""The live display of a campaign, and the report about a run."""
