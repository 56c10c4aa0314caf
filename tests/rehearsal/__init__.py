"""A rehearsal of a whole campaign: four machines as separate places on this one, with real schedulers and faults."""
