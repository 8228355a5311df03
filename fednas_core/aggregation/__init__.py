"""How replies are weighed against each other."""
