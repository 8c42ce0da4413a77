"""Demo sets: where images come from, what they are used for, and which of them demonstrate."""
