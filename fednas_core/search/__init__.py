"""Searching a space: fitness, exact and evolutionary search, the Pareto path and its random controls."""
