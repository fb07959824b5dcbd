"""The smallest network that has a cliff: exclusive or, by hand and trained."""
