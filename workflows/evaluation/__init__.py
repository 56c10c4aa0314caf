"""Loading a finished model, generating with it, scoring it."""
