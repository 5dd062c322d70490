"""Removing old run folders (`parallelrun clean`)."""
