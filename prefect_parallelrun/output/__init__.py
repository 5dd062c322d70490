"""Rows on disk, once: the journal, the writer, and publication of the output file."""
