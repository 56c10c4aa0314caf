"""The model that is trained, its weights, its batches and its loss."""
