"""Search a library of music by descriptions: index, query, command line."""
