"""Images: where they come from, who holds them, and what happens to a batch on its way to the network."""
