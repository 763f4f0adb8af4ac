"""Training steps of the libraries that `fastvae.patch` knows, patched and unpatched: `make bench-clients`."""
