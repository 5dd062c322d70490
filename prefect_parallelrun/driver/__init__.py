"""One run, on the flow's machine."""
