"""A run from settings to models: who takes part, what is sent and collected, how networks are evaluated."""
