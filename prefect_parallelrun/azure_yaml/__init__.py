"""Parallel jobs in the YAML of Azure's second SDK (R109)."""
