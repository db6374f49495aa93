"""Tools that know nothing of densities: checks, files, random numbers, statistics."""
