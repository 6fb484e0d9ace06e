"""The tasks of a storage plan on the workers of a Dask cluster."""
