"""Training processes of one site: launchers, process group, parallel networks, control line."""
