"""Search spaces: what may vary, described as layers from which network, plan and cost follow."""
