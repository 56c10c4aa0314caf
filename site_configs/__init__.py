"""One Python file per machine: a function ``site`` that returns one complete, typed Site."""
