"""One file for each published system, and the registry that makes them by name."""
