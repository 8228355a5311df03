"""What a device can do: the measured latency of a network, and the profile a client sends once."""
