"""The study of transfers: speed against the size of models, for each destination."""
