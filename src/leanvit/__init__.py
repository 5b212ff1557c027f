"""leanvit."""
