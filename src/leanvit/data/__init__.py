"""From sources of images to batches of views."""
