"""Parts of the generator of the embedded chemistry set; they need the extra crossfed[chemistry]."""
