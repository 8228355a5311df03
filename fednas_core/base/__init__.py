"""Values, errors, seeds, settings and files: what every other room stands on."""
