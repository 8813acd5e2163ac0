"""Hold what `make demo` needs beyond the project itself."""
