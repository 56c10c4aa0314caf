"""Training processes of one site: launch, rendezvous, process group, control line."""
