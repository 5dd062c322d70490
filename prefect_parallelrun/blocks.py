"""Every Prefect block of this package; none so far. The entry point of the collection."""
