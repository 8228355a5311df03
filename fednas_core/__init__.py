"""Federated neural architecture search without a network: pure torch and numpy, from values up to experiments."""
