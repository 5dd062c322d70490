"""What runs on each Dask worker that hosts worker processes, and what is sent there."""
