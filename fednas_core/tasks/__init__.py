"""What a client can be asked to do, and what server and clients make of the settings."""
