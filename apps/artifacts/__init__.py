"""Files of tensors: the store, streaming over it, weighted sums, LoRA, server optimisers, checks of updates."""
