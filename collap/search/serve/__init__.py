"""A page and an HTTP API to search a library with: `collap serve`."""
