"""What a run looks like to a person: one self-contained HTML page and its Markdown twin, from the run folder alone."""
