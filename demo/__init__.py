"""What `make demo` needs beyond the project itself."""
