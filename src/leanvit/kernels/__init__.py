"""One operation a file, each with a plain form that runs anywhere."""
