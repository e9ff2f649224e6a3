"""The service behind an address: `lddgan serve`."""
