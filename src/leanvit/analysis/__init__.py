"""Analyses of what a backbone learned."""
