"""The contract between environments and everything that trains, plays and reports; see `contract`."""
