"""What a training step costs: `lddgan bench --train` (`measure`), its rows and their table."""
