"""Scripts behind docs/: not part of the installed package."""
