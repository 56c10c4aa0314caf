"""The parts of the generator of the embedded chemistry set; needs the extra crossfed[chemistry]."""
