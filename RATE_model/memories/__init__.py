"""What remembers, one file or folder each."""
