"""The worker process and its supervisor. Standard library only at import."""
