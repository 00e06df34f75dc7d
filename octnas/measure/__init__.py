"""Speed and memory of octave networks, measured."""
