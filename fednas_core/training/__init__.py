"""What happens to one network: local training and evaluation."""
