"""Methods, one a file: what is learned from a batch of views."""
